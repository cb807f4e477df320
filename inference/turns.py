"""Who may be inside vLLM: at most `slots` distinct adapters and so many requests; the rest wait here, in a fair order.

vLLM itself starves adapters beyond `max_loras` and gives most to whoever asks most. Here turns go round robin over
tenants, then over a tenant's adapters, weighed by tokens. One slot, and a few places for requests, are kept for tenants
that hold none and have not had more than their share: whoever floods the replica cannot shut another out. An adapter
keeps its slot for `stint` seconds; after that, if its own tenant or one with fewer slots waits for one, it takes no new
request and runs empty.
"""

import asyncio
from collections import Counter, deque
from dataclasses import dataclass

from inference.problems import AdapterError
from inference.ring import Ring
from inference.tenant import QUANTUM, Pace, Slot, Tenant, Turn

KEPT_PLACES = 8
"""Requests in flight beyond the limit, of tenants that have none."""


@dataclass(frozen=True)
class Limits:
    slots: int
    in_flight: int = 128
    tenant_in_flight: int = 64
    waiting: int = 512
    tenant_waiting: int = 256
    waiting_bytes: int = 128 << 20
    tenant_waiting_bytes: int = 64 << 20
    stint: float = 1.0

    @property
    def kept_slots(self) -> int:
        return 1 if self.slots > 1 else 0


class Turns:
    """Single event loop; no call blocks it. A turn is one `try_take` or `join`, at most one `computed`, one `leave`."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._slots: dict[str, Slot] = {}
        self._tenants: dict[str, Tenant] = {}
        self._ring: Ring[str] = Ring(QUANTUM)
        self._pace = Pace()
        self._requests = 0
        self._reading: Counter[str | None] = Counter()
        self._waiting = 0
        self._waiting_bytes = 0

    @property
    def running(self) -> dict[str, int]:
        """Requests that vLLM's engine works at, by adapter."""
        return {adapter: slot.requests for adapter, slot in self._slots.items()}

    @property
    def in_flight(self) -> Counter[str | None]:
        """Requests that are not over, computed or not, by adapter; those to the base under None."""
        slots = self.running
        base = self._requests - sum(slots.values())
        return Counter[str | None](slots) + Counter({None: base}) + self._reading

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

    def join(self, tenant: str, adapter: str | None, cost: float, size: int = 0) -> Turn:
        """Queues a request that is not ready yet. Raises AdapterError where the queues are full."""
        if not self._room_for(self._tenants.get(tenant) or Tenant(), size):
            message = "Too many requests wait for this replica."
            raise AdapterError("no_capacity", message, retry_after=self.seconds_to_wait(tenant))
        turn = self._turn(tenant, adapter, cost, size)
        entered = self._enter(tenant)
        entered.queues.setdefault(adapter, deque()).append(turn)
        entered.ring.join(adapter)
        entered.waiting_bytes += size
        self._waiting_bytes += size
        self._waiting += 1
        return turn

    def ready(self, turn: Turn) -> None:
        """The turn may be given from now on; await its `granted`."""
        turn.ready = True
        self._grant()

    def computed(self, turn: Turn, used: float | None = None) -> None:
        """The engine is done with the request, whose slot and place others may have; its client is still reading."""
        tenant = self._tenants[turn.tenant]
        turn.computed = True
        tenant.reading += 1
        self._reading[turn.adapter] += 1
        self._stop(tenant, turn, used)
        self._grant()

    def leave(self, turn: Turn, used: float | None = None) -> None:
        """The request is over, or nobody waits for it any more. `used` is what it really cost; None: as expected."""
        tenant = self._tenants[turn.tenant]
        turn.over = True
        if turn.computed:
            tenant.reading -= 1
            self._reading -= Counter({turn.adapter: 1})
        elif turn.granted.done() and not turn.granted.cancelled():
            self._stop(tenant, turn, used)
        else:
            self._dequeue(tenant, turn)
        if tenant.gone:
            del self._tenants[turn.tenant]
            self._ring.leave(turn.tenant)
        self._grant()

    def seconds_to_wait(self, tenant: str) -> float:
        """What a refused client is told: the length of its queue at the pace at which that has moved."""
        known = self._tenants.get(tenant)
        if known is not None and known.waiting:
            return known.pace.seconds_for(known.waiting, self._now())
        return self._pace.seconds_for(self._waiting, self._now())

    def _room_for(self, tenant: Tenant, size: int) -> bool:
        limits, mine = self.limits, tenant.waiting
        # Others' crowds do not shut out a tenant that has nothing waiting.
        share = 1 if mine else 2
        return (
            mine < limits.tenant_waiting
            and tenant.waiting_bytes + size <= limits.tenant_waiting_bytes
            and self._waiting < limits.waiting * share
            and self._waiting_bytes + size <= limits.waiting_bytes * share
        )

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
        mine = tenant.requests + tenant.reading
        if mine >= limits.tenant_in_flight or self._requests >= limits.in_flight + kept:
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

    def _stop(self, tenant: Tenant, turn: Turn, used: float | None) -> None:
        self._requests -= 1
        tenant.requests -= 1
        if used is not None:
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
        self._waiting_bytes -= turn.size
        tenant.waiting_bytes -= turn.size
        queue = tenant.queues[turn.adapter]
        queue.remove(turn)
        if not queue:
            del tenant.queues[turn.adapter]
            tenant.ring.leave(turn.adapter)

    def _turn(self, tenant: str, adapter: str | None, cost: float, size: int = 0) -> Turn:
        return Turn(tenant, adapter, cost, size, asyncio.get_running_loop().create_future())

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
