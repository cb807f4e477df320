"""One supervised job on the engine, from Start to Trained: data order, epochs, validation, checkpoints, messages.

The first client of `engine.Engine`. Names one short piece of work at a time, so that jobs can share steps, and leaves
what there is to tell in `outbox`. Steps are `turns`', pipes and the fate of failing jobs are `serve`'s.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from service.contracts.worker import Event
from trainer.checkpoint import (
    CheckpointInvalid,
    CheckpointState,
    StepMetrics,
    read_checkpoint,
    spec_hash,
    write_checkpoint,
)
from trainer.engine.adapter import AdapterSettings, Measured, NonFinite, Outcome, Work
from trainer.engine.engine import Engine
from trainer.engine.failures import as_failure
from trainer.engine.optimizer import AdamParams, learning_rate
from trainer.engine.plan import Row, cut, padded_tokens
from trainer.engine.rows import RowFile, epoch_order
from trainer.protocol import CheckpointWritten, JobFailed, Line, Progress, Start, Stopped, Trained

log = logging.getLogger("trainer.engine")

VALIDATION_ROWS = 32
"""Rows a turn: a long validation must not keep other jobs or a stop waiting."""

EVENTS_A_LINE = 100

BEAT_SECONDS = 10.0
"""The agent takes long silence for a hang; a long validation or a slow step says nothing of itself."""


class JobRunner:
    """A step is `prepare`, `took` with what came of `work`, and `stepped` where that made the job `due`.

    Each raises whatever ends the job; `failed` turns that into its last message.
    """

    def __init__(
        self, engine: Engine, start: Start, checkpoint_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        spec, settings = start.spec, start.spec.hyperparameters
        self._engine, self._spec, self._settings = engine, spec, settings
        self._work_dir = Path(start.work_dir)
        self._rows = RowFile(Path(start.training_dir))
        self._validation = RowFile(Path(start.validation_dir)) if start.validation_dir else None
        for rows in filter(None, (self._rows, self._validation)):
            engine.check_rows(rows.largest_token, rows.longest)
        self._steps_an_epoch = -(-len(self._rows) // settings.batch_size)
        self.total_steps = settings.n_epochs * self._steps_an_epoch
        self.step = 0
        self.trained_tokens = 0
        self.finished = False
        self.outbox: list[Line] = []
        self._events: list[Event] = []
        self._unvalidated: StepMetrics | None = None
        self._work: Work | None = None
        self._pieces: list[list[Row]] = []
        """What is left of the batch in progress."""
        self._measured: list[Measured] = []
        self._retrying = False
        self._order: tuple[int, list[int]] = (-1, [])
        self._clock, self._checkpoint_seconds = clock, checkpoint_seconds
        self.adapter = engine.create_adapter(
            AdapterSettings(settings.lora_rank, settings.lora_alpha, settings.target_modules, spec.seed)
        )
        try:
            if start.checkpoint_dir is not None:
                self._resume(Path(start.checkpoint_dir))
        except BaseException:
            engine.release(self.adapter)
            raise
        self._last_checkpoint = self._heard = clock()

    @property
    def job_id(self) -> str:
        return self._spec.job_id

    @property
    def tenant(self) -> str:
        return self._spec.project_id

    @property
    def validating(self) -> bool:
        return self._unvalidated is not None

    @property
    def due(self) -> bool:
        return not self.validating and self._work is None and bool(self._measured) and not self._pieces

    @property
    def work(self) -> Work:
        """What `prepare` has prepared."""
        assert self._work is not None
        return self._work

    @property
    def cost(self) -> int:
        """Padded tokens of the work; a second try shares its passes with nobody."""
        return max(padded_tokens(self.work.rows), self._engine.shared_budget if self._retrying else 0)

    def prepare(self) -> None:
        """Reads the rows of the next piece of work, unless one waits already."""
        if self._work is not None:
            return
        if self.validating:
            self._work = Work(self.adapter, self._validation_part())
            return
        batch = self._batch()
        if not self._measured:
            self._pieces = cut(batch, self._engine.token_budget)
        self._work = Work(self.adapter, self._pieces.pop(0), sum(row.labelled for row in batch))

    def took(self, outcome: Outcome) -> None:
        self._work = None
        if isinstance(outcome, NonFinite):
            self._retry(outcome)
            return
        if isinstance(outcome, Exception):
            raise outcome
        self._measured.append(outcome)
        metrics = self._unvalidated
        if metrics is not None and len(self._measured) * VALIDATION_ROWS >= len(self._validation or ()):
            total, self._measured, self._unvalidated = self._total(), [], None
            self._report(metrics, total)
            self._save_or_finish()

    def adam(self) -> AdamParams:
        settings = self._settings
        return AdamParams(self._rate(), weight_decay=settings.weight_decay, max_grad_norm=settings.max_grad_norm)

    def stepped(self, norm: float | NonFinite) -> None:
        if isinstance(norm, NonFinite):
            self._retry(norm)
            return
        measured, self._measured, self._retrying = self._total(), [], False
        self.trained_tokens += sum(row.trained_tokens for row in self._batch())
        self.step += 1
        metrics = StepMetrics(train_loss=measured.mean_loss, train_mean_token_accuracy=measured.accuracy)
        if self._validation is not None and self.step % self._steps_an_epoch == 0:
            self._unvalidated = metrics
        else:
            self._report(metrics, None)
            self._save_or_finish()

    def stop(self, save: bool) -> None:
        if save and self.step:
            self._checkpoint()
        self._say(Stopped(job_id=self.job_id, step=self.step, trained_tokens=self.trained_tokens))
        self.release()

    def release(self) -> None:
        self._engine.release(self.adapter)
        self.finished = True

    def failed(self, error: Exception) -> None:
        """The job's last message, after an exception from `turn` or `stop`."""
        failure = as_failure(error, self.step, self.total_steps, self._rate())
        self._say(JobFailed(job_id=self.job_id, step=self.step, trained_tokens=self.trained_tokens, failure=failure))
        self.release()

    def flush(self) -> None:
        """Moves gathered events into `outbox`, in lines short enough for any reader; else now and then a beat."""
        while self._events:
            self._progress(self._events[:EVENTS_A_LINE])
            del self._events[:EVENTS_A_LINE]
        if self._clock() - self._heard >= BEAT_SECONDS:
            self._progress([])

    def _progress(self, events: list[Event]) -> None:
        self._heard = self._clock()
        self.outbox.append(
            Progress(
                job_id=self.job_id,
                step=self.step,
                total_steps=self.total_steps,
                trained_tokens=self.trained_tokens,
                events=tuple(events),
            )
        )

    def _retry(self, error: NonFinite) -> None:
        """The update was skipped. A passing fault of the device is gone the second time, a diverged job is not."""
        if self._retrying:
            raise error
        log.warning("job %s: step %d was not finite, trying it again", self.job_id, self.step + 1)
        self._measured, self._retrying = [], True

    def _total(self) -> Measured:
        return sum(self._measured[1:], self._measured[0])

    def _save_or_finish(self) -> None:
        if self.step == self.total_steps:
            self._finish()
        elif self._checkpoint_due():
            self._checkpoint()

    def _batch(self) -> list[Row]:
        epoch, place = divmod(self.step, self._steps_an_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(self._spec.seed, epoch, len(self._rows)).tolist())
        start = place * self._settings.batch_size
        return [self._rows[index] for index in self._order[1][start : start + self._settings.batch_size]]

    def _rate(self) -> float:
        settings = self._settings
        return learning_rate(
            settings.learning_rate, self.step, self.total_steps, settings.warmup_ratio, settings.lr_scheduler
        )

    def _validation_part(self) -> list[Row]:
        rows = self._validation
        assert rows is not None
        start = len(self._measured) * VALIDATION_ROWS
        return [rows[index] for index in range(start, min(start + VALIDATION_ROWS, len(rows)))]

    def _report(self, metrics: StepMetrics, validation: Measured | None) -> None:
        data = {"step": self.step, "total_steps": self.total_steps, **metrics.model_dump()}
        message = f"Step {self.step}/{self.total_steps}: training loss={metrics.train_loss:.2f}"
        if validation is not None:
            # One pass over the whole file serves both of OpenAI's names; there is no smaller sample of it.
            for prefix in ("valid", "full_valid"):
                data[f"{prefix}_loss"] = validation.mean_loss
                data[f"{prefix}_mean_token_accuracy"] = validation.accuracy
            message += f", validation loss={validation.mean_loss:.2f}"
        self._event(f"m{self.step}", "metrics", message, data)

    def _event(self, name: str, kind: str, message: str, data: dict[str, object] | None = None) -> None:
        tail = self.job_id.removeprefix("ftjob-")
        level = "info" if kind == "metrics" else "warn"
        self._events.append(
            Event.model_validate(
                {"id": f"ftevent-{tail}-{name}", "type": kind, "level": level, "message": message, "data": data or {}}
            )
        )

    def _say(self, line: Line) -> None:
        self.flush()
        self.outbox.append(line)

    def _checkpoint_due(self) -> bool:
        age = self._clock() - self._last_checkpoint
        ends_epoch = self.step % self._steps_an_epoch == 0
        return age >= (self._checkpoint_seconds / 4 if ends_epoch else self._checkpoint_seconds)

    def _checkpoint(self) -> None:
        """A disk that is full costs a checkpoint, never the job."""
        directory = self._work_dir / "checkpoints" / f"step-{self.step}"
        state = CheckpointState(
            job_id=self.job_id,
            spec_sha256=spec_hash(self._spec, len(self._rows)),
            step=self.step,
            trained_tokens=self.trained_tokens,
            unvalidated=self._unvalidated,
        )
        self._last_checkpoint = self._clock()
        try:
            write_checkpoint(directory, state, *self._engine.save(self.adapter))
        except OSError as error:
            log.error("job %s: no checkpoint at step %d: %s", self.job_id, self.step, error.strerror)
            self._event(f"c{self.step}", "message", f"The checkpoint of step {self.step} could not be written.")
            return
        self._say(
            CheckpointWritten(
                job_id=self.job_id, step=self.step, trained_tokens=self.trained_tokens, directory=str(directory)
            )
        )

    def _resume(self, directory: Path) -> None:
        try:
            found = read_checkpoint(directory, spec_hash(self._spec, len(self._rows)))
            self._engine.load(self.adapter, found.adapter, found.optimizer, found.state.step)
        except (CheckpointInvalid, KeyError, RuntimeError) as error:
            # The same data in the same order gives the same adapter, so starting over loses time and nothing else.
            log.error("job %s: starting over: %s", self.job_id, error)
            self._event("restart", "message", f"The checkpoint cannot be used: {error}. Training starts over.")
            return
        self.step, self.trained_tokens = found.state.step, found.state.trained_tokens
        self._unvalidated = found.state.unvalidated

    def _finish(self) -> None:
        directory = self._work_dir / "adapter"
        targets = self._engine.export(self.adapter, directory, self._spec.base_model)
        self._say(
            Trained(
                job_id=self.job_id,
                step=self.step,
                trained_tokens=self.trained_tokens,
                directory=str(directory),
                target_modules=targets,
            )
        )
        self.release()
