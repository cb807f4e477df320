"""What a run is told to do instead of going on: by the job's owner, by the lease, by the agent.

Owns which order outranks which.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeVar

Order = Literal["run", "release", "pause", "cancel", "lost", "fenced"]
"""`release` hands the job back to the queue; `lost` and `fenced` end the run without a word to the service."""

RANK: dict[Order, int] = {"run": 0, "release": 1, "pause": 2, "cancel": 3, "lost": 4, "fenced": 5}
STOPPING: frozenset[Order] = frozenset({"release", "pause", "cancel", "lost", "fenced"})
NOT_OURS: frozenset[Order] = frozenset({"lost", "fenced"})
"""The lease is not, or may not be, ours any more: nothing is uploaded or reported from here on."""

SPOILS_SAVING: frozenset[Order] = NOT_OURS | frozenset[Order]({"cancel"})
"""A trained or stopped job is still stored, unless one of these comes."""

T = TypeVar("T")


class Interrupted(Exception):
    """An order came first; read it from the Orders."""


class Orders:
    """The strongest order given so far. An order is never taken back."""

    def __init__(self) -> None:
        self.current: Order = "run"
        self._changed = asyncio.Event()
        self._listener: Callable[[Order], None] | None = None

    def give(self, order: Order) -> None:
        if RANK[order] <= RANK[self.current]:
            return
        self.current = order
        self._changed.set()
        self._changed = asyncio.Event()
        if self._listener:
            self._listener(order)

    def listen(self, listener: Callable[[Order], None] | None) -> None:
        """Calls `listener` with each new order, and at once with one that already stands."""
        self._listener = listener
        if listener and self.current != "run":
            listener(self.current)

    async def race(self, work: Coroutine[Any, Any, T], against: frozenset[Order] = STOPPING) -> T:
        """The result of `work`, which is cancelled if an order of `against` stands or comes: Interrupted."""
        if self.current in against:
            work.close()
            raise Interrupted(self.current)
        task = asyncio.create_task(work)
        order = asyncio.create_task(self._one_of(against))
        try:
            await asyncio.wait({task, order}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Interrupted(self.current)
            return await task
        finally:
            order.cancel()
            await _cancelled(task)

    async def _one_of(self, orders: frozenset[Order]) -> None:
        while self.current not in orders:
            await self._changed.wait()


async def _cancelled(task: "asyncio.Task[Any]") -> None:
    """Waits until a task has let go of what it held."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
