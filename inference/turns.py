"""Who may be inside vLLM: at most `slots` distinct adapters and so many requests; the rest wait here, in a fair order.

vLLM itself starves adapters beyond `max_loras` and gives most to whoever asks most. Here turns go round robin over
tenants, then over a tenant's adapters, weighed by tokens. One slot, and a few places for requests, are kept for tenants
that hold none and have not had more than their share: whoever floods the replica cannot shut another out. An adapter
keeps its slot for `stint` seconds; after that, if its own tenant or one with fewer slots waits for one, it takes no new
request and runs empty.
"""

import asyncio
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from inference.problems import AdapterError
from inference.ring import Ring

QUANTUM = 256.0
"""Tokens of a tenant's turn: about one request."""
KEPT_PLACES = 8
"""Requests in flight beyond the limit, of tenants that have none."""
_PACE_OF = 32
_LONGEST_SECONDS = 60.0


@dataclass(frozen=True)
class Limits:
    slots: int
    in_flight: int = 128
    tenant_in_flight: int = 64
    waiting: int = 512
    tenant_waiting: int = 256
    stint: float = 1.0

    @property
    def kept_slots(self) -> int:
        return 1 if self.slots > 1 else 0


@dataclass(eq=False)
class Turn:
    """One request from its arrival to its end. `adapter` is None for the base, which needs no slot."""

    tenant: str
    adapter: str | None
    cost: float
    since: float
    granted: asyncio.Future[None] = field(repr=False)
    ready: bool = False
    """Whether it may be given its turn, or its adapter's files are still on their way."""


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
    """What one tenant has running and waiting."""

    def __init__(self) -> None:
        self.requests = 0
        self.slots = 0
        self.queues: dict[str | None, deque[Turn]] = {}
        self.ring: Ring[str | None] = Ring(QUANTUM)
        self.pace = Pace()

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self.queues.values())

    def heads(self) -> Iterator[tuple[str | None, Turn]]:
        """The first request of each adapter that may have its turn."""
        for adapter, queue in self.queues.items():
            turn = next((turn for turn in queue if turn.ready and not turn.granted.done()), None)
            if turn is not None:
                yield adapter, turn


class Turns:
    """Single event loop; no call blocks it. A turn is one `try_take` or `join`, then one `leave`."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._slots: dict[str, Slot] = {}
        self._tenants: dict[str, Tenant] = {}
        self._ring: Ring[str] = Ring(QUANTUM)
        self._pace = Pace()
        self._requests = 0
        self._waiting = 0

    @property
    def running(self) -> dict[str, int]:
        """Requests in flight by adapter."""
        return {adapter: slot.requests for adapter, slot in self._slots.items()}

    @property
    def requests(self) -> int:
        """Requests in flight, those to the base among them."""
        return self._requests

    @property
    def waiting(self) -> int:
        return self._waiting

    def try_take(self, tenant: str, adapter: str | None, cost: float) -> Turn | None:
        """A turn, if one is free right now; whoever waits could not use it, or would have it already."""
        known = self._tenants.get(tenant)
        if not self._may_run(tenant, known or Tenant(), adapter, self._seekers()):
            return None
        self._enter(tenant)
        turn = self._turn(tenant, adapter, cost)
        self._start(turn)
        turn.granted.set_result(None)
        return turn

    def join(self, tenant: str, adapter: str | None, cost: float) -> Turn:
        """Queues a request that is not ready yet. Raises AdapterError where the queues are full."""
        mine = self._tenants[tenant].waiting if tenant in self._tenants else 0
        # Others' crowds do not shut out a tenant that has nothing waiting.
        limit = self.limits.waiting if mine else 2 * self.limits.waiting
        if mine >= self.limits.tenant_waiting or self._waiting >= limit:
            message = "Too many requests wait for this replica."
            raise AdapterError("no_capacity", message, retry_after=self.seconds_to_wait(tenant))
        turn = self._turn(tenant, adapter, cost)
        entered = self._enter(tenant)
        entered.queues.setdefault(adapter, deque()).append(turn)
        entered.ring.join(adapter)
        self._waiting += 1
        return turn

    def ready(self, turn: Turn) -> None:
        """The turn may be given from now on; await its `granted`."""
        turn.ready = True
        self._grant()

    def leave(self, turn: Turn, used: float | None = None) -> None:
        """The request is over, or nobody waits for it any more. `used` is what it really cost; None: as expected."""
        tenant = self._tenants[turn.tenant]
        if turn.granted.done() and not turn.granted.cancelled():
            self._stop(tenant, turn, turn.cost if used is None else used)
        else:
            self._dequeue(tenant, turn)
        if not tenant.requests and not tenant.queues:
            del self._tenants[turn.tenant]
            self._ring.leave(turn.tenant)
        self._grant()

    def seconds_to_wait(self, tenant: str) -> float:
        """What a refused client is told: the length of its queue at the pace at which that has moved."""
        known = self._tenants.get(tenant)
        if known is not None and known.waiting:
            return known.pace.seconds_for(known.waiting, self._now())
        return self._pace.seconds_for(self._waiting, self._now())

    # -- one step -----------------------------------------------------------------------------------------------------

    def _grant(self) -> None:
        while (turn := self._next()) is not None:
            tenant = self._tenants[turn.tenant]
            self._dequeue(tenant, turn)
            now = self._now()
            tenant.pace.mark(now)
            self._pace.mark(now)
            self._start(turn)
            turn.granted.set_result(None)

    def _next(self) -> Turn | None:
        if not self._waiting or self._requests >= self.limits.in_flight + KEPT_PLACES:
            return None
        seekers = self._seekers()
        found: dict[str, dict[str | None, Turn]] = {}
        for name, tenant in self._tenants.items():
            heads = {a: turn for a, turn in tenant.heads() if self._may_run(name, tenant, a, seekers)}
            if heads:
                found[name] = heads
        if not found:
            return None
        name = self._ring.pick(found)
        return found[name][self._tenants[name].ring.pick(found[name])]

    def _may_run(self, name: str, tenant: Tenant, adapter: str | None, seekers: dict[str, int]) -> bool:
        limits = self.limits
        debt = self._ring.in_debt(name)
        kept = 0 if tenant.requests or debt else KEPT_PLACES
        if tenant.requests >= limits.tenant_in_flight or self._requests >= limits.in_flight + kept:
            return False
        if adapter is None:
            return True
        slot = self._slots.get(adapter)
        if slot is not None:
            return not self._closing(slot, seekers)
        return limits.slots - len(self._slots) > (limits.kept_slots if tenant.slots or debt else 0)

    def _closing(self, slot: Slot, seekers: dict[str, int]) -> bool:
        """Whether the adapter has had its stint and another may have its slot: its own tenant's, or a poorer one's."""
        if not seekers or self._now() - slot.since < self.limits.stint:
            return False
        return any(name == slot.tenant or slots < slot.owner.slots for name, slots in seekers.items())

    def _seekers(self) -> dict[str, int]:
        """Tenants that wait for a slot, and how many each holds."""
        return {
            name: tenant.slots
            for name, tenant in self._tenants.items()
            if tenant.queues and any(a is not None and a not in self._slots for a, _ in tenant.heads())
        }

    # -- bookkeeping --------------------------------------------------------------------------------------------------

    def _enter(self, name: str) -> Tenant:
        self._ring.join(name)
        return self._tenants.setdefault(name, Tenant())

    def _start(self, turn: Turn) -> None:
        tenant = self._tenants[turn.tenant]
        self._requests += 1
        tenant.requests += 1
        self._ring.charge(turn.tenant, turn.cost)
        tenant.ring.charge(turn.adapter, turn.cost)
        if turn.adapter is None:
            return
        if turn.adapter not in self._slots:
            self._slots[turn.adapter] = Slot(turn.tenant, tenant, self._now())
            tenant.slots += 1
        self._slots[turn.adapter].requests += 1

    def _stop(self, tenant: Tenant, turn: Turn, used: float) -> None:
        self._requests -= 1
        tenant.requests -= 1
        self._ring.charge(turn.tenant, used - turn.cost)
        tenant.ring.charge(turn.adapter, used - turn.cost)
        if turn.adapter is None:
            return
        slot = self._slots[turn.adapter]
        slot.requests -= 1
        if not slot.requests:
            del self._slots[turn.adapter]
            slot.owner.slots -= 1

    def _dequeue(self, tenant: Tenant, turn: Turn) -> None:
        self._waiting -= 1
        queue = tenant.queues[turn.adapter]
        queue.remove(turn)
        if not queue:
            del tenant.queues[turn.adapter]
            tenant.ring.leave(turn.adapter)

    def _turn(self, tenant: str, adapter: str | None, cost: float) -> Turn:
        return Turn(tenant, adapter, cost, self._now(), asyncio.get_running_loop().create_future())

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
