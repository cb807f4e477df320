"""How many completions this process carries at once, in all and of one project. What waits at a replica counts too."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from service.contracts.ids import ProjectId
from service.errors import RateLimited, Unavailable

RETRY_SECONDS = 1


class Limits:
    def __init__(self, most: int, most_of_project: int) -> None:
        self._most = most
        self._most_of_project = most_of_project
        self._projects: Counter[ProjectId] = Counter()
        self._all = 0

    @property
    def in_progress(self) -> int:
        return self._all

    @property
    def crowded(self) -> bool:
        """Whether the process carries more than half of what it takes."""
        return self._all > self._most // 2

    @contextmanager
    def counted(self, project: ProjectId, own: int | None) -> Generator[None, None, None]:
        """One completion while the block runs, `own` being the project's own limit.

        Raises RateLimited or Unavailable where that is one too many.
        """
        most = self._most_of_project if own is None else own
        if self._projects[project] >= most:
            raise RateLimited(
                f"Your project has {self._projects[project]} requests in progress, of {most} that it may have; "
                "wait for some of them to end.",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        if self._all >= self._most:
            raise Unavailable(
                "The service has as many requests in progress as it takes; try again shortly.",
                code="overloaded",
                retry_after=RETRY_SECONDS,
            )
        self._all += 1
        self._projects[project] += 1
        try:
            yield
        finally:
            self._all -= 1
            self._projects[project] -= 1
            if not self._projects[project]:
                del self._projects[project]
