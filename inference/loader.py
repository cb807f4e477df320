"""Bringing one adapter up: to disk while its request waits, then in its turn into vLLM, with room made for both.

Whose turn it is and who uses what is the residency's matter.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from inference.cache import AdapterCache, NoRoom
from inference.problems import AdapterError
from inference.registry import Registry
from service.contracts.replica import AdapterProblem

FETCHING = "The adapter is being fetched; try again shortly."


class Loader:
    """`idle` names what vLLM knows and could do without, best first."""

    def __init__(self, registry: Registry, cache: AdapterCache, idle: Callable[[], list[str]]) -> None:
        self._registry = registry
        self._cache = cache
        self._idle = idle

    async def prefetch(self, adapter: str, tenant: str, deadline: float) -> None:
        """To disk while the request waits for its turn. What does not fit is fetched when the turn has come."""
        if adapter in self._registry:
            return
        async with in_time(deadline, "adapter_loading", FETCHING):
            try:
                await self._cache.materialise(adapter, tenant)
            except NoRoom:
                return

    async def load(self, adapter: str, tenant: str, deadline: float) -> None:
        """In its turn. While the request waited, its adapter may have had to make room for one that ran."""
        self._cache.pin(adapter)
        try:
            while not self._registry.usable(adapter):
                async with in_time(deadline, "adapter_loading", FETCHING):
                    folder = await self._materialise(adapter, tenant)
                await self._registry.load(adapter, folder, tenant, self._idle)
            self._registry.touch(adapter, tenant)
        finally:
            self._cache.unpin(adapter)

    async def _materialise(self, adapter: str, tenant: str) -> Path:
        """A disk full of adapters that only vLLM's registry holds is relieved by unloading idle ones."""
        shared = True
        while True:
            try:
                return await self._cache.materialise(adapter, tenant)
            except NoRoom:
                # The first fetch may have been one that began as somebody's prefetch, with less right to room.
                if not shared and not await self._registry.make_room(tenant, self._idle):
                    raise
                shared = False


@asynccontextmanager
async def in_time(deadline: float, problem: AdapterProblem, message: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise AdapterError(problem, message) from None
