"""Which jobs the next step takes: deficit round robin over tenants, then over a tenant's jobs, up to a token budget.

Owns fairness and nothing of training. The currency is padded tokens. What does not fit comes first in the next step,
where anything fits, so nobody waits for longer than a round.
"""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar


class Candidate(Protocol):
    """A job with rows to run."""

    @property
    def job_id(self) -> str: ...

    @property
    def tenant(self) -> str: ...

    @property
    def cost(self) -> int: ...


T = TypeVar("T", bound=Candidate)


class Scheduler(Generic[T]):
    """Remembers who got how much."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._steps = 0
        self._served: dict[str, int] = {}
        """The last step each job took part in."""
        self._deficits: dict[str, float] = {}
        """Tokens that each tenant may still take, in the order of turns."""

    def choose(self, waiting: Sequence[T]) -> list[T]:
        """The next step's jobs, at least one of those that wait, all of them where they fit."""
        self._steps += 1
        queues = self._queues(waiting)
        quantum = max((job.cost for job in waiting), default=0)
        chosen: list[T] = []
        left, short = self._budget, ""
        while queues:
            for tenant in list(queues):
                queue = queues[tenant]
                if queue[0].cost > self._deficits[tenant]:  # else its last turn was cut short, and goes on
                    self._deficits[tenant] += quantum
                while queue and queue[0].cost <= self._deficits[tenant] and (queue[0].cost <= left or not chosen):
                    job = queue.pop(0)
                    self._deficits[tenant] -= job.cost
                    left -= job.cost
                    chosen.append(job)
                if not queue:
                    # Turns that were not needed are not saved up against the others.
                    self._deficits[tenant] = 0.0
                    del queues[tenant]
                elif queue[0].cost <= self._deficits[tenant]:
                    short = short or tenant
                    del queues[tenant]
                elif left <= 0:
                    del queues[tenant]
        self._remember(chosen, short)
        return chosen

    def _queues(self, waiting: Sequence[T]) -> dict[str, list[T]]:
        """Each tenant's jobs, longest unserved first, in the order of the tenants' turns; forgets who is gone."""
        tenants = dict.fromkeys([*self._deficits, *(job.tenant for job in waiting)])
        present = {job.tenant for job in waiting}
        self._deficits = {name: self._deficits.get(name, 0.0) for name in tenants if name in present}
        self._served = {job.job_id: self._served.get(job.job_id, 0) for job in waiting}
        oldest = sorted(waiting, key=lambda job: self._served[job.job_id])
        return {name: [job for job in oldest if job.tenant == name] for name in self._deficits}

    def _remember(self, chosen: Sequence[T], short: str) -> None:
        """The next step begins with the tenant that was first to find too little left, else with another than now."""
        self._served |= {job.job_id: self._steps for job in chosen}
        names = list(self._deficits)
        start = names.index(short) if short else 1
        self._deficits = {name: self._deficits[name] for name in names[start:] + names[:start]}
