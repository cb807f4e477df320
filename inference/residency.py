"""Which adapters vLLM knows, and the one order in which they come and go.

In: on disk and proved, then a turn, then vLLM's registry. Out: no new request, none in flight, out of the registry, out
of the engine's memory, and only then may the files go. An adapter that vLLM still names while its files are gone kills
the engine for every tenant, so no other module loads, unloads or deletes.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from inference.cache import AdapterCache
from inference.problems import AdapterError
from inference.turns import Turns
from service.contracts.replica import AdapterProblem, Tier

T = TypeVar("T")

ABORT_SECONDS = 0.5
"""vLLM aborts a departed client's request just after its handler returned; the adapter counts as used for so long."""


class Engine(Protocol):
    async def load(self, adapter: str, folder: Path) -> None:
        """Raises AdapterError where the engine refuses; loading what is loaded is success."""
        ...

    async def unload(self, adapter: str) -> None:
        """After it the engine can no longer read the adapter's files."""
        ...


class Residency:
    """One event loop. A request is one `try_enter` or `enter`, then one `leave`."""

    def __init__(
        self, engine: Engine, cache: AdapterCache, turns: Turns, *, max_loras: int, max_known: int, hold_seconds: float
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._turns = turns
        self._max_loras = max_loras
        self._max_known = max_known
        self._hold_seconds = hold_seconds
        self._known: OrderedDict[str, None] = OrderedDict()
        """Least recently used first; a mirror of vLLM's registry."""
        self._uses: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._changes: set[asyncio.Task[Any]] = set()
        self._closing: set[str] = set()
        """To be evicted once their requests are done; no new one is let in."""
        self._leaving: str | None = None
        """On its way out of vLLM to make room, under the engine lock."""
        self._engine_lock = asyncio.Lock()

    def tier(self, adapter: str) -> Tier | None:
        """Where the adapter is now; None if only storage may have it."""
        if adapter in self._known:
            recent = zip(reversed(self._known), range(self._max_loras), strict=False)
            return "gpu" if any(adapter == name for name, _ in recent) else "cpu"
        return "disk" if self._cache.holds(adapter) else None

    def tiers(self) -> dict[str, Tier]:
        """Every adapter on this replica, fastest tiers first."""
        names = [*reversed(self._known), *(name for name in self._cache.adapters if name not in self._known)]
        return {name: tier for name in names if (tier := self.tier(name)) is not None}

    @property
    def disk_bytes(self) -> int:
        return self._cache.disk_bytes

    @property
    def in_flight(self) -> dict[str, int]:
        return self._turns.running

    def try_enter(self, adapter: str) -> Tier | None:
        """All of admission for an adapter that vLLM knows and that has a turn free; None where it takes waiting."""
        if adapter not in self._known or adapter in self._closing or adapter == self._leaving:
            return None
        if not self._turns.try_take(adapter):
            return None
        tier = self.tier(adapter)
        self._known.move_to_end(adapter)
        self._uses[adapter] += 1
        return tier

    async def enter(self, adapter: str) -> Tier:
        """Waits until the adapter is loaded and has a turn. Every enter that returns needs one `leave`."""
        deadline = asyncio.get_running_loop().time() + self._hold_seconds
        async with _in_time(deadline, "adapter_loading", "The adapter is being unloaded; try again shortly."):
            await self._until(lambda: adapter not in self._closing)
        tier = self.tier(adapter) or "store"
        self._uses[adapter] += 1
        self._cache.pin(adapter)
        try:
            await self._wait_and_load(adapter, deadline)
        except BaseException:
            self._release(adapter)
            raise
        finally:
            self._cache.unpin(adapter)
        return tier

    def leave(self, adapter: str, *, aborted: bool) -> None:
        """The request is over: its response is complete, or its client is gone."""
        if aborted:
            asyncio.get_running_loop().call_later(ABORT_SECONDS, self._give_back, adapter)
        else:
            self._give_back(adapter)

    async def ensure(self, adapter: str) -> Tier:
        """Loads the adapter without a request; the tier it was found in."""
        tier = self.try_enter(adapter) or await self.enter(adapter)
        self.leave(adapter, aborted=False)
        return tier

    async def evict(self, adapter: str, *, seconds: float) -> None:
        """Takes the adapter out of vLLM and off the disk, waiting at most so long for its requests in flight."""
        self._closing.add(adapter)
        try:
            try:
                async with asyncio.timeout(seconds):
                    await self._until(lambda: self._uses[adapter] == 0)
            except TimeoutError:
                message = f"{self._uses[adapter]} requests still use this adapter; try again."
                raise AdapterError("no_capacity", message) from None
            await self._exclusively(self._unload(adapter))
            await self._cache.delete(adapter)
        finally:
            self._closing.discard(adapter)
            self._wake()

    async def _wait_and_load(self, adapter: str, deadline: float) -> None:
        folder = None if adapter in self._known else await self._fetched(adapter, deadline)
        async with _in_time(deadline, "no_capacity", "All adapter slots of this replica stayed busy."):
            await self._turns.take(adapter)
        try:
            # While this request waited, its adapter may have had to make room for one that ran.
            while adapter not in self._known or adapter == self._leaving:
                folder = folder or await self._fetched(adapter, deadline)
                await self._exclusively(self._load(adapter, folder))
            self._known.move_to_end(adapter)
        except BaseException:
            self._turns.give_back(adapter)
            raise

    async def _fetched(self, adapter: str, deadline: float) -> Path:
        async with _in_time(deadline, "adapter_loading", "The adapter is being fetched; try again shortly."):
            return await self._materialise(adapter)

    async def _materialise(self, adapter: str) -> Path:
        """A disk full of adapters that only vLLM's registry holds is relieved by unloading idle ones."""
        while True:
            try:
                return await self._cache.materialise(adapter)
            except AdapterError as error:
                if error.problem != "no_capacity" or not await self._exclusively(self._unload_one_idle()):
                    raise

    async def _exclusively(self, change: Coroutine[None, None, T]) -> T:
        """One change of vLLM's registry at a time, run to its end even if the request that wanted it is gone."""

        async def locked() -> T:
            async with self._engine_lock:
                return await change

        task = asyncio.create_task(locked())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _load(self, adapter: str, folder: Path) -> None:
        if adapter in self._known:
            return
        if len(self._known) >= self._max_known and not await self._unload_one_idle():
            raise AdapterError("no_capacity", "Every adapter this replica can hold is in use.")
        self._cache.pin(adapter)
        try:
            await self._engine.load(adapter, folder)
        except BaseException:
            self._cache.unpin(adapter)
            raise
        self._known[adapter] = None

    async def _unload_one_idle(self) -> bool:
        """Makes room by the adapter used longest ago that vLLM is not working with; False if there is none.

        One that requests only wait for is loaded again when its turn comes; its files stay pinned until then.
        """
        idle = [name for name in self._known if name not in self._turns.running and name not in self._closing]
        if not idle:
            return False
        adapter = next((name for name in idle if self._uses[name] == 0), idle[0])
        self._leaving = adapter
        try:
            await self._unload(adapter)
        finally:
            self._leaving = None
        return True

    async def _unload(self, adapter: str) -> None:
        """The caller has closed the adapter and seen that no request of it runs."""
        if adapter in self._known:
            await self._engine.unload(adapter)
            del self._known[adapter]
            self._cache.unpin(adapter)

    def _give_back(self, adapter: str) -> None:
        self._turns.give_back(adapter)
        self._release(adapter)

    def _release(self, adapter: str) -> None:
        self._uses[adapter] -= 1
        if self._uses[adapter] == 0:
            del self._uses[adapter]
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()


@asynccontextmanager
async def _in_time(deadline: float, problem: AdapterProblem, message: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise AdapterError(problem, message) from None
