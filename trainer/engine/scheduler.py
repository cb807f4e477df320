"""Which jobs the next step takes: those served least, over tenants and then over a tenant's jobs, up to a token budget.

Owns fairness and nothing of training. The currency is padded tokens. The tenant that has had fewest, with its job that
has had fewest, begins each step whatever its size, so waiting alone brings everybody to the front. Whoever fits rides
along in what is left of the budget. Work that fills the budget by itself thus has the pass to itself, and is paid for:
its tenant begins a step again once the others have had as much.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

LEAST_PART = 8
"""A step is charged with at least this part of the budget: below that size a pass takes no less time."""


class Candidate(Protocol):
    """A job with rows to run."""

    @property
    def job_id(self) -> str: ...

    @property
    def tenant(self) -> str: ...

    @property
    def cost(self) -> int: ...


T = TypeVar("T", bound=Candidate)


class _Ledger:
    """What each member of a group has been charged. The largest difference is that of one step."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        self._began: dict[str, int] = {}
        """The last step that each began."""

    def keep(self, present: Iterable[str]) -> None:
        """Forgets who is gone. Newcomers start beside the one served least: absence earns nothing."""
        start = min(self._tokens.values(), default=0)
        self._tokens = {name: self._tokens.get(name, start) for name in present}
        self._began = {name: self._began.get(name, 0) for name in self._tokens}

    def rank(self, name: str, more: int = 0) -> tuple[int, int]:
        """Orders by tokens, `more` of them counted already; of equals, who has not begun a step for longest."""
        return self._tokens[name] + more, self._began[name]

    def charge(self, costs: Mapping[str, int], step: int) -> None:
        """Who begins pays; who rides along pays too, but not more than puts it level with who was served least.

        What a pass gave away that others could not have used is thus no debt, or it would grow without end.
        """
        first = min(self._tokens, key=self.rank)
        level = self._tokens[first] + costs.get(first, 0)
        for name, cost in costs.items():
            self._tokens[name] = max(self._tokens[name], min(self._tokens[name] + cost, level))
        if first in costs:
            self._began[first] = step


class Scheduler(Generic[T]):
    """Remembers who got how much."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._least = max(1, budget // LEAST_PART)
        self._steps = 0
        self._tenants = _Ledger()
        self._jobs: dict[str, _Ledger] = {}
        """Of each tenant."""

    def choose(self, waiting: Sequence[T]) -> list[T]:
        """The next step's jobs, at least one of those that wait, all of them where they fit."""
        self._steps += 1
        queues = self._queues(waiting)
        chosen: dict[str, list[T]] = {tenant: [] for tenant in queues}
        left, begun, open_ = self._budget, False, list(queues)
        while open_:
            tenant = min(open_, key=lambda name: self._tenants.rank(name, sum(job.cost for job in chosen[name])))
            job = next((job for job in queues[tenant] if not begun or job.cost <= left), None)
            if job is None:
                open_.remove(tenant)
                continue
            queues[tenant].remove(job)
            chosen[tenant].append(job)
            left, begun = left - job.cost, True
        self._charge({tenant: jobs for tenant, jobs in chosen.items() if jobs})
        return [job for jobs in chosen.values() for job in jobs]

    def _queues(self, waiting: Sequence[T]) -> dict[str, list[T]]:
        """Each tenant's jobs, those served least first."""
        queues: dict[str, list[T]] = {}
        for job in waiting:
            queues.setdefault(job.tenant, []).append(job)
        self._tenants.keep(queues)
        self._jobs = {tenant: self._jobs.get(tenant, _Ledger()) for tenant in queues}
        for tenant, queue in queues.items():
            served = self._jobs[tenant]
            served.keep(job.job_id for job in queue)
            queue.sort(key=lambda job, served=served: served.rank(job.job_id))
        return queues

    def _charge(self, chosen: Mapping[str, Sequence[T]]) -> None:
        if not chosen:
            return
        totals = {tenant: max(self._least, sum(job.cost for job in jobs)) for tenant, jobs in chosen.items()}
        self._tenants.charge(totals, self._steps)
        for tenant, jobs in chosen.items():
            self._jobs[tenant].charge({job.job_id: max(self._least, job.cost) for job in jobs}, self._steps)
