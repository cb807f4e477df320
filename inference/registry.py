"""The names that vLLM knows: one change at a time, in a fair order, and never a file deleted under a known name.

A known adapter's files are pinned in the cache from before its load until after its unload. When a name may go is
decided by what runs and what is closing, which the residency tells; nobody else loads or unloads.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from inference.cache import AdapterCache
from inference.fair_semaphore import FairSemaphore
from inference.metrics import Metrics
from inference.problems import AdapterError

T = TypeVar("T")


class Engine(Protocol):
    async def load(self, adapter: str, folder: Path) -> None:
        """Raises AdapterError where the engine refuses; loading what is loaded is success."""
        ...

    async def unload(self, adapter: str) -> None:
        """After it the engine can no longer read the adapter's files."""
        ...


class Registry:
    """A mirror of vLLM's own, in order of use."""

    def __init__(self, engine: Engine, cache: AdapterCache, metrics: Metrics, *, most: int) -> None:
        self._engine = engine
        self._cache = cache
        self._metrics = metrics
        self._most = most
        self._known: OrderedDict[str, None] = OrderedDict()
        self._leaving: str | None = None
        """On its way out to make room."""
        self._lock = FairSemaphore(1)
        self._changes: set[asyncio.Task[Any]] = set()

    def __contains__(self, adapter: str) -> bool:
        return adapter in self._known

    def __len__(self) -> int:
        return len(self._known)

    def recent_first(self) -> Iterator[str]:
        return reversed(self._known)

    def usable(self, adapter: str) -> bool:
        return adapter in self._known and adapter != self._leaving

    def touch(self, adapter: str) -> None:
        self._known.move_to_end(adapter)

    async def load(self, adapter: str, folder: Path, tenant: str, idle: Callable[[], list[str]]) -> None:
        """Makes room among the `idle` if need be; the caller has pinned the folder for the time of the call."""
        await self._exclusively(self._load(adapter, folder, idle), tenant)

    async def make_room(self, tenant: str, idle: Callable[[], list[str]]) -> bool:
        """Unloads the first of the `idle`; False if there is none."""
        return await self._exclusively(self._unload_one(idle), tenant)

    async def unload(self, adapter: str) -> None:
        """The caller has seen to it that no request runs or can come."""
        await self._exclusively(self._unload(adapter), "")

    async def _exclusively(self, change: Coroutine[None, None, T], tenant: str) -> T:
        """Run to its end even if the request that wanted it is gone."""

        async def locked() -> T:
            async with self._lock.held(tenant):
                return await change

        task = asyncio.create_task(locked())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _load(self, adapter: str, folder: Path, idle: Callable[[], list[str]]) -> None:
        if adapter in self._known:
            return
        if len(self._known) >= self._most and not await self._unload_one(idle):
            raise AdapterError("no_capacity", "Every adapter this replica can hold is in use.")
        self._cache.pin(adapter)
        try:
            with self._metrics.loading("disk"):
                await self._engine.load(adapter, folder)
        except BaseException as error:
            self._cache.unpin(adapter)
            if isinstance(error, AdapterError):
                self._cache.verdicts.remember(adapter, error)
            raise
        self._known[adapter] = None

    async def _unload_one(self, idle: Callable[[], list[str]]) -> bool:
        adapter = next(iter(idle()), None)
        if adapter is None:
            return False
        self._leaving = adapter
        try:
            await self._unload(adapter)
        finally:
            self._leaving = None
        self._metrics.evicted("engine")
        return True

    async def _unload(self, adapter: str) -> None:
        if adapter in self._known:
            await self._engine.unload(adapter)
            del self._known[adapter]
            self._cache.unpin(adapter)
