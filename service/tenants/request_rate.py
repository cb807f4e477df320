"""How often a project may call the routes that manage: everything but inference, which has rates of its own.

In memory and for this process alone: the limit is there to keep one project from taking a process to itself. A bucket
holds a minute's worth and is kept as the moment at which it is full again.
"""

import time
from collections.abc import Callable
from math import ceil

from service.contracts.ids import ProjectId
from service.errors import RateLimited

WINDOW = 60.0
PROJECTS = 10_000
"""Full buckets are forgotten beyond so many."""


class RequestRate:
    """Buckets of one process, each with `limit` requests where its project has no limit of its own."""

    def __init__(self, limit: int, now: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._now = limit, now
        self._full_at: dict[ProjectId, float] = {}

    def admit(self, project: ProjectId, own_limit: int | None) -> None:
        """Takes one request. Raises RateLimited where the project has none left."""
        limit = self._limit if own_limit is None else own_limit
        now = self._now()
        full_at = max(self._full_at.get(project, now), now)
        # Half a request less than a whole bucket, which sums of fractions would miss.
        wait = full_at - now - WINDOW * (limit - 0.5) / limit if limit else WINDOW
        if wait > 0:
            raise _refused(limit, wait)
        if len(self._full_at) >= PROJECTS and project not in self._full_at:
            self._full_at = {known: full for known, full in self._full_at.items() if full > now}
        self._full_at[project] = full_at + WINDOW / limit


def _refused(limit: int, wait: float) -> RateLimited:
    return RateLimited(
        f"Rate limit reached for your project on requests per min other than for inference: Limit {limit}. "
        f"Please try again in {ceil(wait)}s.",
        headers={"Retry-After": str(ceil(wait)), "retry-after-ms": str(ceil(wait * 1000))},
    )
