"""The names that vLLM knows: one change at a time, in a fair order, and never a file deleted under a known name.

A known adapter's files are pinned in the cache from before its load until after its unload. When a name may go is
decided by what runs and what is closing, which the residency tells; nobody else loads or unloads.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from inference.cache import AdapterCache
from inference.canary import Unlike, canary_of, compare
from inference.fair_semaphore import FairSemaphore
from inference.known_adapters import KnownAdapters
from inference.metrics import Metrics
from inference.problems import AdapterError
from service.contracts.manifest import Canary

T = TypeVar("T")

UNLIKE_SECONDS = 60.0
"""How long an adapter that failed its canary is refused before it is loaded and asked again."""
_REMEMBERED = 4096


class Engine(Protocol):
    async def load(self, adapter: str, folder: Path) -> None:
        """Raises AdapterError where the engine refuses; loading what is loaded is success."""
        ...

    async def unload(self, adapter: str) -> None:
        """After it the engine can no longer read the adapter's files."""
        ...

    async def predict(self, adapter: str | None, prompt: Sequence[int]) -> Mapping[int, float]:
        """The likeliest next tokens with their log probabilities; none where it takes no such prompt.

        None is the base.
        """
        ...


class Registry:
    """A mirror of vLLM's own."""

    def __init__(self, engine: Engine, cache: AdapterCache, metrics: Metrics, *, most: int) -> None:
        self._engine = engine
        self._cache = cache
        self._metrics = metrics
        self._most = most
        self._known = KnownAdapters()
        self._alike: OrderedDict[str, None] = OrderedDict()
        """Passed their canary in this process."""
        self._leaving: str | None = None
        """On its way out to make room."""
        self._proofs: dict[str, asyncio.Task[None]] = {}
        """Under way, of adapters that are known but not yet to be used."""
        self._asked: dict[str, asyncio.Task[Mapping[int, float]]] = {}
        """Canaries that the engine is answering just now."""
        self._lock = FairSemaphore(1)
        self._changes: set[asyncio.Task[Any]] = set()

    def __contains__(self, adapter: str) -> bool:
        return adapter in self._known

    def __len__(self) -> int:
        return len(self._known)

    def recent_first(self) -> Iterator[str]:
        return self._known.recent_first()

    def first_to_go(self, wanted: Callable[[str], bool]) -> list[str]:
        return self._known.first_to_go(wanted)

    def usable(self, adapter: str) -> bool:
        return adapter in self._known and adapter != self._leaving and adapter not in self._proofs

    def touch(self, adapter: str, tenant: str) -> None:
        self._known.use(adapter, tenant)

    async def load(self, adapter: str, folder: Path, tenant: str, idle: Callable[[], list[str]]) -> None:
        """Makes room among the `idle` if need be; the caller has pinned the folder for the time of the call."""
        await self._exclusively(self._load(adapter, folder, tenant, idle), tenant)
        proof = self._proofs.get(adapter)
        if proof is not None:
            await asyncio.shield(proof)

    async def make_room(self, tenant: str, idle: Callable[[], list[str]]) -> bool:
        """Unloads the first of the `idle`; False if there is none."""
        return await self._exclusively(self._make_room(idle), tenant)

    async def unload(self, adapter: str, used: Callable[[], bool]) -> None:
        """Unless it is `used` when its turn to go has come."""
        await self._exclusively(self._unload_unless(used, adapter), "")

    async def _exclusively(self, change: Coroutine[None, None, T], tenant: str) -> T:
        """Run to its end even if the request that wanted it is gone."""

        async def locked() -> T:
            async with self._lock.held(tenant):
                return await change

        task = asyncio.create_task(locked())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _load(self, adapter: str, folder: Path, tenant: str, idle: Callable[[], list[str]]) -> None:
        if adapter in self._known:
            return
        leaving: asyncio.Task[None] | None = None
        if len(self._known) >= self._most:
            # Both at once, since each waits for one of the engine's steps to end. It takes them in their order, so the
            # one that leaves must be asked for first.
            leaving = self._leave_one(idle)
            if leaving is None:
                raise AdapterError("no_capacity", "Every adapter this replica can hold is in use.")
            await asyncio.sleep(0)
        try:
            await self._take_in(adapter, folder)
            # No wait between the two, in which it could be used unproved.
            self._known.use(adapter, tenant)
            if adapter not in self._alike:
                # Beside other loads, whose canaries then share the engine's steps with this one.
                proof = self._proofs[adapter] = asyncio.create_task(self._prove(adapter, folder))
                proof.add_done_callback(lambda done: done.cancelled() or done.exception())
        finally:
            if leaving is not None:
                await leaving

    async def _take_in(self, adapter: str, folder: Path) -> None:
        self._cache.pin(adapter)
        try:
            with self._metrics.loading("disk"), self._cache.clock.loading(adapter):
                await self._engine.load(adapter, folder)
        except BaseException as error:
            self._cache.unpin(adapter)
            if isinstance(error, AdapterError):
                self._cache.verdicts.remember(adapter, error)
            raise

    async def _prove(self, adapter: str, folder: Path) -> None:
        """By its canary, once in a process: the id is the hash of the files and of the canary itself."""
        proof = asyncio.current_task()
        try:
            canary = canary_of(folder)
            if canary is not None:
                with self._cache.clock.loading(adapter):
                    compare(canary, await self._predict(adapter, canary))
            self._alike[adapter] = None
            if len(self._alike) > _REMEMBERED:
                self._alike.popitem(last=False)
        except BaseException as error:
            await self._exclusively(self._withdraw(adapter, proof), "")
            if isinstance(error, AdapterError):
                self._metrics.failed("disk", error.problem)
                seconds = UNLIKE_SECONDS if isinstance(error, Unlike) else None
                self._cache.verdicts.remember(adapter, error, seconds)
            raise
        finally:
            if self._proofs.get(adapter) is proof:
                del self._proofs[adapter]

    async def _predict(self, adapter: str, canary: Canary) -> Mapping[int, float]:
        asked = self._asked[adapter] = asyncio.create_task(self._engine.predict(adapter, canary.prompt))
        try:
            return await asked
        finally:
            if self._asked.get(adapter) is asked:
                del self._asked[adapter]

    def _leave_one(self, idle: Callable[[], list[str]]) -> asyncio.Task[None] | None:
        """Begins to unload the first of the `idle`, which no new request gets from now on; None if there is none."""
        adapter = next(iter(idle()), None)
        if adapter is None:
            return None
        self._leaving = adapter
        return asyncio.create_task(self._leave(adapter))

    async def _leave(self, adapter: str) -> None:
        try:
            await self._unload(adapter)
        finally:
            self._leaving = None
        self._metrics.evicted("engine")

    async def _make_room(self, idle: Callable[[], list[str]]) -> bool:
        leaving = self._leave_one(idle)
        if leaving is not None:
            await leaving
        return leaving is not None

    async def _unload_unless(self, used: Callable[[], bool], adapter: str) -> None:
        if not used():
            await self._unload(adapter)

    async def _withdraw(self, adapter: str, proof: asyncio.Task[None] | None) -> None:
        """What failed may have been unloaded meanwhile, and loaded again: another proof then speaks for it."""
        if self._proofs.get(adapter) is proof:
            await self._unload(adapter)

    async def _unload(self, adapter: str) -> None:
        if adapter not in self._known:
            return
        asked = self._asked.get(adapter)
        if asked is not None:
            # Nobody need be waiting for it any more; the engine would yet read files that are gone by then.
            await asyncio.wait({asked})
        await self._engine.unload(adapter)
        self._proofs.pop(adapter, None)
        self._known.forget(adapter)
        self._cache.unpin(adapter)
