"""How fast one job goes through the shared steps, and what its neighbours cost it. Owns these three numbers.

`turns` knows who shares a pass and how long it takes; the runner knows when the job's own step is over.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class StepPace:
    """Between two optimizer steps of one job."""

    tokens_per_second: float
    queue_wait_seconds: float
    step_share: float


class Pace:
    """Since the job's last optimizer step."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self._waited, self._own, self._all = 0.0, 0, 0

    def waited(self, seconds: float) -> None:
        """Others had the device."""
        self._waited += seconds

    def took_part(self, own: int, together: int) -> None:
        """In passes of so many padded tokens."""
        self._own += own
        self._all += together

    def stepped(self, tokens: int) -> StepPace:
        now = self._clock()
        seconds = now - self._since
        pace = StepPace(
            round(tokens / seconds, 1) if seconds > 0 else 0.0,
            round(self._waited, 4),
            round(self._own / self._all, 4) if self._all else 1.0,
        )
        self._since, self._waited, self._own, self._all = now, 0.0, 0, 0
        return pace
