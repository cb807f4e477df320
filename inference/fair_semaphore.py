"""A semaphore whose waiters are served in the order in which their tenants were last, first those that never were.

So nobody's crowd stands before another's one, and who comes now and then waits for no more than who is served just now.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_REMEMBERED = 1024
"""Tenants; of those served longer ago it is not known any more that they ever were."""


class FairSemaphore:
    """`permits` holders at once, and `kept` more of tenants that hold none."""

    def __init__(self, permits: int, *, kept: int = 0) -> None:
        self._permits = permits
        self._kept = kept
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._served: OrderedDict[str, None] = OrderedDict()

    @asynccontextmanager
    async def held(self, tenant: str) -> AsyncIterator[None]:
        await self._acquire(tenant)
        try:
            yield
        finally:
            self._release(tenant)

    async def _acquire(self, tenant: str) -> None:
        if self._free(tenant):
            self._serve(tenant)
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
        while self._waiting and (granted := self._next()) is not None:
            granted.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        for tenant in self._in_order():
            queue = self._waiting[tenant]
            while queue and queue[0].done():
                queue.popleft()
            if not queue:
                del self._waiting[tenant]
            elif self._free(tenant):
                self._serve(tenant)
                return queue.popleft()
        return None

    def _in_order(self) -> list[str]:
        new = [tenant for tenant in self._waiting if tenant not in self._served]
        return new + [tenant for tenant in self._served if tenant in self._waiting]

    def _serve(self, tenant: str) -> None:
        self._held[tenant] += 1
        self._served[tenant] = None
        self._served.move_to_end(tenant)
        if len(self._served) > _REMEMBERED:
            self._served.popitem(last=False)
