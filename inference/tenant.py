"""What one tenant has running and waiting on a replica, request by request. Whose turn it is, is the turns' matter."""

import asyncio
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from inference.ring import Ring

QUANTUM = 256.0
"""Tokens of a tenant's turn: about one request."""
_PACE_OF = 32
_LONGEST_SECONDS = 60.0


@dataclass(eq=False)
class Turn:
    """One request from its arrival to its end. `adapter` is None for the base, which needs no slot."""

    tenant: str
    adapter: str | None
    cost: float
    size: int
    """Bytes that it holds while it waits."""
    granted: asyncio.Future[None] = field(repr=False)
    ready: bool = False
    """Whether it may be given its turn, or its adapter's files are still on their way."""
    computed: bool = False
    """Whether vLLM's engine is done with it, and only its reader is not."""
    over: bool = False


@dataclass(eq=False)
class Slot:
    """An adapter in flight. It counts for the tenant that opened it."""

    tenant: str
    owner: "Tenant"
    since: float
    requests: int = 0


class Pace:
    """How fast a queue has moved lately."""

    def __init__(self) -> None:
        self._granted: deque[float] = deque(maxlen=_PACE_OF)

    def mark(self, now: float) -> None:
        self._granted.append(now)

    def seconds_for(self, requests: int, now: float) -> float:
        """The likely wait behind so many; a queue that has stopped since promises nothing soon."""
        seconds = (now - self._granted[0]) / len(self._granted) * requests if self._granted else 1.0
        return min(max(1.0, math.ceil(seconds)), _LONGEST_SECONDS)


class Tenant:
    def __init__(self) -> None:
        self.requests = 0
        """In vLLM's engine."""
        self.reading = 0
        """Computed, and not yet taken by their clients."""
        self.slots = 0
        self.queues: dict[str | None, deque[Turn]] = {}
        self.waiting_bytes = 0
        self.ring: Ring[str | None] = Ring(QUANTUM)
        self.pace = Pace()

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self.queues.values())

    @property
    def gone(self) -> bool:
        return not self.requests and not self.reading and not self.queues

    def heads(self) -> Iterator[tuple[str | None, Turn]]:
        """The first request of each adapter that may have its turn."""
        for adapter, queue in self.queues.items():
            turn = next((turn for turn in queue if turn.ready and not turn.granted.done()), None)
            if turn is not None:
                yield adapter, turn
