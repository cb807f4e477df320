"""How many requests of batches this process has in progress: few, and fewer while others ask.

Turns go round robin over projects. While this process answers anybody else, a quarter is left; while a replica makes
requests wait for their turn, whoever's they are and through whichever gateway they came, one.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

CROWDED_SECONDS = 0.05
"""A replica whose requests wait for so long has more to do than it can do at once."""
REST_SECONDS = 2.0
SHARE = 4


class Throttle:
    """One process's. `busy` says how many other requests are in progress."""

    def __init__(self, most: int, busy: Callable[[], int], now: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._busy = busy
        self._now = now
        self._running = 0
        self._rests_until = 0.0
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def limit(self) -> int:
        if self._now() < self._rests_until:
            return 1
        return max(1, self._most // SHARE) if self._busy() else self._most

    def saw(self, waited: float) -> None:
        """How long a request waited at a replica."""
        if waited >= CROWDED_SECONDS:
            self._rests_until = self._now() + REST_SECONDS

    @asynccontextmanager
    async def turn(self, project: str) -> AsyncGenerator[None]:
        await self._taken(project)
        try:
            yield
        finally:
            self._running -= 1
            self._grant()

    async def _taken(self, project: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(project, deque()).append(turn)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._running -= 1
                self._grant()
            raise

    def _grant(self) -> None:
        while self._running < self.limit and (turn := self._next()) is not None:
            self._running += 1
            turn.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        while self._waiting:
            project, queue = self._waiting.popitem(last=False)
            while queue and queue[0].done():
                queue.popleft()
            if not queue:
                continue
            turn = queue.popleft()
            if queue:
                self._waiting[project] = queue
            return turn
        return None
