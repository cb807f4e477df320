"""One supervised job on the engine, from Start to Trained: data order, epochs, validation, checkpoints, messages.

The first client of `engine.Engine`. Does one short piece of work a turn, so that jobs can take turns, and leaves what
there is to tell in `outbox`. Turns, pipes and the fate of failing jobs are `serve`'s.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from service.contracts.worker import Event, JobFailure
from trainer.checkpoint import (
    CheckpointInvalid,
    CheckpointState,
    StepMetrics,
    read_checkpoint,
    spec_hash,
    write_checkpoint,
)
from trainer.engine.engine import AdapterSettings, Engine, Measured, NonFinite, OutOfMemory
from trainer.engine.optimizer import AdamParams, learning_rate
from trainer.engine.plan import Row
from trainer.engine.rows import RowFile, epoch_order
from trainer.engine.wrap import UnknownTarget
from trainer.protocol import CheckpointWritten, JobFailed, Line, Progress, Start, Stopped, Trained

log = logging.getLogger("trainer.engine")

VALIDATION_ROWS = 32
"""Rows a turn: a long validation must not keep other jobs or a stop waiting."""

EVENTS_A_LINE = 100

BEAT_SECONDS = 10.0
"""The agent takes long silence for a hang; a long validation or a slow step says nothing of itself."""


class JobRunner:
    """Raises from `__init__` and `turn` whatever ends the job; `failed` turns that into its last message."""

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
        self._measured: list[Measured] = []
        self._order: tuple[int, list[int]] = (-1, [])
        self._clock, self._checkpoint_seconds = clock, checkpoint_seconds
        self._adapter = engine.create_adapter(
            AdapterSettings(settings.lora_rank, settings.lora_alpha, settings.target_modules, spec.seed)
        )
        try:
            if start.checkpoint_dir is not None:
                self._resume(Path(start.checkpoint_dir))
        except BaseException:
            engine.release(self._adapter)
            raise
        self._last_checkpoint = self._heard = clock()

    @property
    def job_id(self) -> str:
        return self._spec.job_id

    def turn(self) -> None:
        """One optimizer step, or one part of a validation, and what falls due after it."""
        if self._unvalidated is not None:
            self._validate(self._unvalidated)
        else:
            self._train()
        if self._unvalidated is not None:
            return
        if self.step == self.total_steps:
            self._finish()
        elif self._checkpoint_due():
            self._checkpoint()

    def stop(self, save: bool) -> None:
        if save and self.step:
            self._checkpoint()
        self._say(Stopped(job_id=self.job_id, step=self.step, trained_tokens=self.trained_tokens))
        self.release()

    def release(self) -> None:
        self._engine.release(self._adapter)
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

    def _train(self) -> None:
        rows = self._batch()
        try:
            measured = self._optimize(rows)
        except NonFinite:
            # The update was skipped. A passing fault of the device is gone the second time, a diverged job is not.
            log.warning("job %s: step %d was not finite, trying it again", self.job_id, self.step + 1)
            measured = self._optimize(rows)
        self.step += 1
        self.trained_tokens += sum(row.trained_tokens for row in rows)
        metrics = StepMetrics(train_loss=measured.mean_loss, train_mean_token_accuracy=measured.accuracy)
        if self._validation is not None and self.step % self._steps_an_epoch == 0:
            self._unvalidated = metrics
        else:
            self._report(metrics, None)

    def _optimize(self, rows: list[Row]) -> Measured:
        settings = self._settings
        measured = self._engine.forward_backward(self._adapter, rows, sum(row.labelled for row in rows))
        self._engine.optim_step(
            self._adapter,
            AdamParams(self._rate(), weight_decay=settings.weight_decay, max_grad_norm=settings.max_grad_norm),
        )
        return measured

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

    def _validate(self, metrics: StepMetrics) -> None:
        rows = self._validation
        assert rows is not None
        start = len(self._measured) * VALIDATION_ROWS
        part = [rows[index] for index in range(start, min(start + VALIDATION_ROWS, len(rows)))]
        self._measured.append(self._engine.evaluate(self._adapter, part))
        if start + VALIDATION_ROWS >= len(rows):
            total, self._measured, self._unvalidated = sum(self._measured[1:], self._measured[0]), [], None
            self._report(metrics, total)

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
            write_checkpoint(directory, state, *self._engine.save(self._adapter))
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
            self._engine.load(self._adapter, found.adapter, found.optimizer, found.state.step)
        except (CheckpointInvalid, KeyError, RuntimeError) as error:
            # The same data in the same order gives the same adapter, so starting over loses time and nothing else.
            log.error("job %s: starting over: %s", self.job_id, error)
            self._event("restart", "message", f"The checkpoint cannot be used: {error}. Training starts over.")
            return
        self.step, self.trained_tokens = found.state.step, found.state.trained_tokens
        self._unvalidated = found.state.unvalidated

    def _finish(self) -> None:
        directory = self._work_dir / "adapter"
        targets = self._engine.export(self._adapter, directory, self._spec.base_model)
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


def as_failure(error: Exception, step: int = 0, total_steps: int = 0, rate: float = 0.0) -> JobFailure:
    """What the job's owner is told, never with a word of their data."""
    if isinstance(error, NonFinite):
        return JobFailure(
            code="loss_diverged",
            message=f"The loss or its gradient stopped being a finite number at step {step + 1} of {total_steps}, "
            f"with a learning rate of {rate:.3g}. A lower learning_rate_multiplier may help.",
            param="hyperparameters.learning_rate_multiplier",
        )
    if isinstance(error, OutOfMemory):
        return JobFailure(
            code="out_of_memory",
            message="The trainer's memory does not hold this job with a single example at a time. A lower "
            "max_seq_length or lora_rank may help.",
            param="hyperparameters.max_seq_length",
        )
    if isinstance(error, UnknownTarget):
        return JobFailure(
            code="invalid_target_modules",
            message=f"The base model has no linear layer named {str(error)[:100]!r}.",
            param="hyperparameters.target_modules",
        )
    reason = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__
    return JobFailure(code="internal_error", message=f"Training stopped at step {step} with {reason}.")
