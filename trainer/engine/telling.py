"""What one job has to say to the agent: events gathered into Progress lines, and every other line after them.

Owns the ids of events and the outbox. What happened, and how to word it, its callers know.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from service.contracts.worker import Event
from trainer.checkpoint import StepMetrics
from trainer.engine.metrics import Evaluated
from trainer.protocol import Line, Progress

EVENTS_A_LINE = 100

BEAT_SECONDS = 10.0
"""The agent takes long silence for a hang; a long validation or a slow step says nothing of itself."""


@dataclass
class Position:
    """Where a job is."""

    job_id: str
    total_steps: int
    step: int = 0
    trained_tokens: int = 0


class Teller:
    def __init__(self, position: Position, clock: Callable[[], float]) -> None:
        self.position, self._clock = position, clock
        self._events: list[Event] = []
        self._heard = clock()
        self.outbox: list[Line] = []

    def metrics(self, trained: StepMetrics, evaluated: Evaluated) -> None:
        """Of the step the job has just done."""
        step, total = self.position.step, self.position.total_steps
        message = f"Step {step}/{total}: training loss={trained.train_loss:.2f}"
        if (loss := evaluated.get("full_valid_loss")) is not None:
            message += f", validation loss={loss:.2f}"
        data = {"step": step, "total_steps": total, **trained.model_dump(exclude_none=True), **evaluated}
        self._event(f"m{step}", "metrics", "info", message, data)

    def note(self, name: str, message: str) -> None:
        self._event(name, "message", "info", message, {})

    def warn(self, name: str, message: str) -> None:
        self._event(name, "message", "warn", message, {})

    def say(self, line: Line) -> None:
        self.flush()
        self.outbox.append(line)

    def flush(self) -> None:
        """Moves gathered events into `outbox`, in lines short enough for any reader; else now and then a beat."""
        while self._events:
            self._progress(self._events[:EVENTS_A_LINE])
            del self._events[:EVENTS_A_LINE]
        if self._clock() - self._heard >= BEAT_SECONDS:
            self._progress([])

    def _progress(self, events: list[Event]) -> None:
        self._heard = self._clock()
        here = self.position
        self.outbox.append(
            Progress(
                job_id=here.job_id,
                step=here.step,
                total_steps=here.total_steps,
                trained_tokens=here.trained_tokens,
                events=tuple(events),
            )
        )

    def _event(
        self,
        name: str,
        kind: Literal["message", "metrics"],
        level: Literal["info", "warn"],
        message: str,
        data: dict[str, object],
    ) -> None:
        tail = self.position.job_id.removeprefix("ftjob-")
        self._events.append(Event(id=f"ftevent-{tail}-{name}", type=kind, level=level, message=message, data=data))
