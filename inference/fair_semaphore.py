"""A semaphore whose waiters are served round robin over tenants, so that nobody's crowd stands before another's one."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairSemaphore:
    """`permits` holders at once, and `kept` more of tenants that hold none."""

    def __init__(self, permits: int, *, kept: int = 0) -> None:
        self._permits = permits
        self._kept = kept
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def held(self, tenant: str) -> AsyncIterator[None]:
        await self._acquire(tenant)
        try:
            yield
        finally:
            self._release(tenant)

    async def _acquire(self, tenant: str) -> None:
        if self._free(tenant):
            self._held[tenant] += 1
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._release(tenant)
            raise

    def _free(self, tenant: str) -> bool:
        kept = 0 if self._held[tenant] else self._kept
        return self._held.total() < self._permits + kept

    def _release(self, tenant: str) -> None:
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        while (granted := self._next()) is not None:
            granted.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        for tenant, queue in list(self._waiting.items()):
            while queue and queue[0].done():
                queue.popleft()
            if not queue:
                del self._waiting[tenant]
            elif self._free(tenant):
                self._held[tenant] += 1
                self._waiting.move_to_end(tenant)
                return queue.popleft()
        return None
