"""Who may occupy one of vLLM's adapter slots: at most `slots` distinct adapters in flight, the rest wait in order.

vLLM itself starves adapters beyond `max_loras`: requests of resident ones overtake for ever. Here a newcomer to a
running adapter overtakes only while the longest waiter has waited less than `patience` seconds; after that slots run
empty and the queue moves. Order within the queue is first come, first served; a fairer order replaces `_next` alone.
"""

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field

from inference.problems import AdapterError


@dataclass(eq=False)
class Waiter:
    adapter: str
    since: float
    granted: asyncio.Future[None] = field(repr=False)


class Turns:
    """Single event loop; no call blocks it."""

    def __init__(self, slots: int, *, limit: int, patience: float = 2.0) -> None:
        self._slots = slots
        self._limit = limit
        self._patience = patience
        self._running: Counter[str] = Counter()
        self._queue: deque[Waiter] = deque()

    @property
    def running(self) -> dict[str, int]:
        """Requests in flight by adapter."""
        return dict(self._running)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def try_take(self, adapter: str) -> bool:
        """Takes a turn if one is free right now."""
        if adapter in self._running:
            if self._queue and asyncio.get_running_loop().time() - self._queue[0].since > self._patience:
                return False
        elif self._queue or len(self._running) >= self._slots:
            return False
        self._running[adapter] += 1
        return True

    async def take(self, adapter: str) -> None:
        """Waits for a turn. A caller that is cancelled leaves the queue, or hands on the turn it was just given."""
        if self.try_take(adapter):
            return
        if len(self._queue) >= self._limit:
            raise AdapterError("no_capacity", "Too many requests wait for this replica's adapter slots.")
        loop = asyncio.get_running_loop()
        waiter = Waiter(adapter, loop.time(), loop.create_future())
        self._queue.append(waiter)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if not waiter.granted.cancelled():
                self.give_back(adapter)
            elif waiter in self._queue:
                self._queue.remove(waiter)
                self._grant()
            raise

    def give_back(self, adapter: str) -> None:
        self._running[adapter] -= 1
        if self._running[adapter] == 0:
            del self._running[adapter]
        self._grant()

    def _grant(self) -> None:
        while (waiter := self._next()) is not None:
            self._queue.remove(waiter)
            if not waiter.granted.cancelled():
                self._running[waiter.adapter] += 1
                waiter.granted.set_result(None)

    def _next(self) -> Waiter | None:
        """The waiter that may run now, if any."""
        if not self._queue:
            return None
        head = self._queue[0]
        free = head.adapter in self._running or len(self._running) < self._slots
        return head if free else None
