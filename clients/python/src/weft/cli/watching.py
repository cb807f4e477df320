"""A job while it learns: a live curve in a terminal, a line for each event in a pipe, JSON lines where asked for."""

import sys
import time
from typing import TYPE_CHECKING, Any

from weft.cli.commands import Session
from weft.cli.output import console, in_terminal, moment, plain, say, show_json_line, styled, visible

if TYPE_CHECKING:
    from rich.console import RenderableType

    from weft.types import FineTuningJob, JobEvent

FRAMES_A_SECOND = 8
CURVE_HEIGHT = 12
NOTICES = 3
NUMBERS = (("loss", "train_loss"), ("validation", "full_valid_loss"), ("tokens/s", "tokens_per_second"))


def told(session: Session, event: "JobEvent") -> None:
    """One event, on a line."""
    if session.json:
        show_json_line(plain(event))
    else:
        sys.stdout.write(f"{moment(event.created_at)}  {visible(event.message)}\n")
        sys.stdout.flush()


def watched(session: Session, job_id: str, timeout: int | None) -> int:
    """Returns when the job has succeeded. Raises the client's errors for other ends."""
    jobs = session.client.fine_tuning.jobs
    try:
        if session.json or not in_terminal():
            job = jobs.wait(job_id, on_event=lambda event: told(session, event), timeout=timeout)
        else:
            job = _live(session, job_id, timeout)
    except KeyboardInterrupt:
        say(session, f"The job goes on; watch it again, or end it: weft jobs cancel {job_id}")
        raise
    if session.json:
        show_json_line(plain(job))
    else:
        sys.stdout.write(f"succeeded  {visible(job.fine_tuned_model or job.id)}\n")
    return 0


def _live(session: Session, job_id: str, timeout: int | None) -> "FineTuningJob":
    from rich.live import Live

    jobs = session.client.fine_tuning.jobs
    view = View(jobs.retrieve(job_id))
    with Live(view, console=console(), refresh_per_second=FRAMES_A_SECOND):
        try:
            job = jobs.wait(job_id, on_event=view.take, timeout=timeout)
        except Exception:
            view.status = jobs.retrieve(job_id).status
            raise
        view.status = job.status
    return job


class View:
    """What a terminal shows of a job; drawn again and again by a thread of rich's."""

    def __init__(self, job: "FineTuningJob") -> None:
        self.job_id, self.model, self.status = job.id, job.model, str(job.status)
        self.train: dict[int, float] = {}
        self.validation: dict[int, float] = {}
        self.latest: dict[str, Any] = {}
        self.notices: list[str] = []
        self._pace: tuple[float, int] | None = None

    def take(self, event: "JobEvent") -> None:
        data = event.data or {}
        if event.type != "metrics" or "step" not in data:
            self.notices.append(event.message)
            return
        self.status = "running"
        step = int(data["step"])
        self.latest = {**self.latest, **data}
        self._pace = self._pace or (time.monotonic(), step)
        for series, name in ((self.train, "train_loss"), (self.validation, "full_valid_loss")):
            if isinstance(data.get(name), int | float):
                series[step] = float(data[name])

    def __rich__(self) -> "RenderableType":
        from rich.console import Group
        from rich.text import Text

        head = Text.assemble((self.job_id, "bold"), "  ", styled(self.status), "  over ", visible(self.model))
        parts: list[RenderableType] = [head]
        if self.train:
            parts += [self._curve(), Text("  ".join(self._numbers()))]
        parts += [Text(visible(notice), style="dim") for notice in self.notices[-NOTICES:]]
        return Group(*parts)

    def _curve(self) -> "RenderableType":
        from weft.cli.curve import Chart

        screen = console()
        last = max(*self.train, int(self.latest.get("total_steps") or 0), 2)
        return Chart(
            {"training loss": dict(self.train), "validation loss": dict(self.validation)},
            last_step=last,
            width=min(screen.width, 100),
            height=min(CURVE_HEIGHT, max(screen.height - 8, 4)),
            fine=screen.encoding.lower().startswith("utf"),
        )

    def _numbers(self) -> list[str]:
        latest = self.latest
        step, total = int(latest["step"]), int(latest.get("total_steps") or 0)
        shown = [f"step {step}/{total}" if total else f"step {step}"]
        for title, name in NUMBERS:
            if isinstance(latest.get(name), int | float):
                shown.append(f"{title} {latest[name]:.4g}")
        left = self._left(step, total)
        return [*shown, f"{left} left"] if left else shown

    def _left(self, step: int, total: int) -> str | None:
        """Guessed from the steps that were seen to pass; those of before tell nothing."""
        if self._pace is None or self.status != "running":
            return None
        began, first = self._pace
        passed = time.monotonic() - began
        if step <= first or passed < 2:
            return None
        seconds = int(passed / (step - first) * (total - step))
        return f"{seconds // 60}:{seconds % 60:02}" if seconds > 0 else None
