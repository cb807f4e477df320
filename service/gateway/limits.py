"""How much this process carries at once, in all and of one project: completions, and the bytes that they hold.

What waits at a replica counts too. Small requests run into the count, large ones into the bytes.
"""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from service.contracts.ids import ProjectId
from service.errors import RateLimited, Unavailable

RETRY_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Budgets:
    """In all, and of these of one project."""

    requests: int
    of_project: int
    bytes: int
    bytes_of_project: int


class Limits:
    def __init__(self, most: Budgets) -> None:
        self._most = most
        self._projects: Counter[ProjectId] = Counter()
        self._all = 0
        self._bytes: Counter[ProjectId] = Counter()
        self._all_bytes = 0

    @property
    def in_progress(self) -> int:
        return self._all

    @property
    def held_bytes(self) -> int:
        return self._all_bytes

    @property
    def crowded(self) -> bool:
        """Whether the process carries more than half of what it takes."""
        return self._all > self._most.requests // 2

    @contextmanager
    def counted(self, project: ProjectId, own: int | None) -> Generator["Held", None, None]:
        """One completion while the block runs, `own` being the project's own limit. What it gives is told its bytes.

        Raises RateLimited or Unavailable where that is one too many.
        """
        most = self._most.of_project if own is None else own
        if self._projects[project] >= most:
            raise RateLimited(
                f"Your project has {self._projects[project]} requests in progress, of {most} that it may have; "
                "wait for some of them to end.",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        if self._all >= self._most.requests:
            raise _overloaded()
        self._all += 1
        self._projects[project] += 1
        held = Held(self, project)
        try:
            yield held
        finally:
            self._all -= 1
            self._projects[project] -= 1
            if not self._projects[project]:
                del self._projects[project]
            self._give_back(held)

    def take(self, held: "Held", size: int) -> None:
        """Raises RateLimited or Unavailable where so many bytes more are too many."""
        of_project = self._bytes[held.project] + size
        if of_project > self._most.bytes_of_project:
            raise RateLimited(
                f"Your project's requests in progress hold {of_project} bytes with this one, of "
                f"{self._most.bytes_of_project} that they may; wait for some of them to end, or ask for less at once.",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        if self._all_bytes + size > self._most.bytes:
            raise _overloaded()
        self._all_bytes += size
        self._bytes[held.project] = of_project
        held.size += size

    def _give_back(self, held: "Held") -> None:
        self._all_bytes -= held.size
        self._bytes[held.project] -= held.size
        if not self._bytes[held.project]:
            del self._bytes[held.project]


class Held:
    """The bytes of one completion."""

    __slots__ = ("_limits", "project", "size")

    def __init__(self, limits: Limits, project: ProjectId) -> None:
        self._limits = limits
        self.project = project
        self.size = 0

    def take(self, size: int) -> None:
        """Raises RateLimited or Unavailable where so many more are too many."""
        self._limits.take(self, size)


def _overloaded() -> Unavailable:
    return Unavailable(
        "The service has as many requests in progress as it takes; try again shortly.",
        code="overloaded",
        retry_after=RETRY_SECONDS,
    )
