"""One job on the engine, from Start to Trained: what its next piece of work is, and what follows from a step.

The first client of `engine.Engine`. Names one short piece of work at a time, so that jobs can share steps, and leaves
what there is to tell in `outbox`. Steps are `turns`', pipes and the fate of failing jobs are `serve`'s; data, rules of
evaluation, files and wording have modules of their own.
"""

import logging
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from torch import Tensor

from trainer.checkpoint import Selection, StepMetrics
from trainer.engine import metrics
from trainer.engine.adapter import AdapterSettings, Measured, NonFinite, Outcome, Work
from trainer.engine.engine import Engine
from trainer.engine.evaluation import evaluation_steps, exhausted, judged, why_stopped
from trainer.engine.examples import Batch, JobData
from trainer.engine.failures import as_failure
from trainer.engine.optimizer import AdamParams, learning_rate
from trainer.engine.pace import Pace
from trainer.engine.pieces import Pieces
from trainer.engine.saving import Saver
from trainer.engine.telling import Position, Teller
from trainer.export import read_adapter
from trainer.protocol import JobFailed, Line, Start, Stopped

log = logging.getLogger("trainer.engine")


class JobRunner:
    """A step is `prepare`, `took` with what came of `work`, and `stepped` where that made the job `due`.

    Each raises whatever ends the job; `failed` turns that into its last message.
    """

    def __init__(
        self, engine: Engine, start: Start, checkpoint_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        spec, settings = start.spec, start.spec.hyperparameters
        self._engine, self._spec, self._settings = engine, spec, settings
        self._data = data = JobData(start)
        for rows in data.files:
            engine.check_rows(rows.largest_token, rows.longest)
        evaluations = evaluation_steps(data.steps_an_epoch, settings.n_epochs)
        self._evaluations = evaluations if data.validated else frozenset[int]()
        self._position = Position(spec.job_id, settings.n_epochs * data.steps_an_epoch)
        self._teller = Teller(self._position, clock)
        self.finished = False
        self.cost = 0
        """Padded tokens of `work`; a second try shares its passes with nobody."""
        self._work: Work | None = None
        self._batch: Batch | None = None
        self._pieces: Pieces | None = None
        """Of the batch or the evaluation in progress."""
        self._retrying = False
        self._unvalidated: StepMetrics | None = None
        self._selection: Selection | None = None
        self._best: dict[str, Tensor] | None = None
        self.adapter = engine.create_adapter(
            AdapterSettings(settings.lora_rank, settings.lora_alpha, settings.target_modules, spec.seed)
        )
        try:
            self._saver = Saver(engine, self.adapter, start, data.rows, self._teller, checkpoint_seconds, clock)
            self._begin(start)
        except BaseException:
            engine.release(self.adapter)
            raise
        self.pace = Pace(clock)

    @property
    def job_id(self) -> str:
        return self._spec.job_id

    @property
    def tenant(self) -> str:
        return self._spec.project_id

    @property
    def step(self) -> int:
        return self._position.step

    @property
    def trained_tokens(self) -> int:
        return self._position.trained_tokens

    @property
    def total_steps(self) -> int:
        return self._position.total_steps

    @property
    def outbox(self) -> list[Line]:
        return self._teller.outbox

    @property
    def validating(self) -> bool:
        return self._unvalidated is not None

    @property
    def due(self) -> bool:
        return not self.validating and self._work is None and self._pieces is not None and not self._pieces.left

    @property
    def work(self) -> Work:
        """What `prepare` has prepared."""
        assert self._work is not None
        return self._work

    def prepare(self) -> None:
        """Reads the rows of the next piece of work, unless one waits already."""
        if self._work is not None:
            return
        if self._pieces is None:
            self._pieces = Pieces(self._evaluation() if self.validating else self._training())
        self._work = self._pieces.take()
        self.cost = max(self._engine.cost(self._work), self._engine.shared_budget if self._retrying else 0)

    def took(self, outcome: Outcome) -> None:
        self._work = None
        if isinstance(outcome, NonFinite):
            self._retry(outcome)
            return
        if isinstance(outcome, Exception):
            raise outcome
        assert self._pieces is not None
        self._pieces.add(outcome)
        if self._unvalidated is not None and not self._pieces.left:
            trained, total = self._unvalidated, self._pieces.total
            self._unvalidated = self._pieces = None
            self._evaluated(trained, total)

    def adam(self) -> AdamParams:
        settings = self._settings
        return AdamParams(self._rate(), weight_decay=settings.weight_decay, max_grad_norm=settings.max_grad_norm)

    def stepped(self, norm: float | NonFinite) -> None:
        if isinstance(norm, NonFinite):
            self._retry(norm)
            return
        assert self._pieces is not None
        assert self._batch is not None
        pace = self.pace.stepped(self._batch.tokens)
        trained = metrics.of_step(self._pieces.total, self._data.preference, self._rate(), norm, pace)
        self._position.trained_tokens += self._batch.trained_tokens
        self._position.step += 1
        self._batch = self._pieces = None
        self._retrying = False
        if self.step in self._evaluations:
            self._unvalidated = trained
        else:
            self._completed(trained, {})

    def stop(self, save: bool) -> None:
        if save and self.step:
            self._checkpoint()
        self._teller.say(Stopped(job_id=self.job_id, step=self.step, trained_tokens=self.trained_tokens))
        self.release()

    def release(self) -> None:
        self._engine.release(self.adapter)
        self.finished = True

    def failed(self, error: Exception) -> None:
        """The job's last message, after an exception from any of the above."""
        failure = as_failure(error, self.step, self.total_steps, self._rate(), self._settings.beta)
        line = JobFailed(job_id=self.job_id, step=self.step, trained_tokens=self.trained_tokens, failure=failure)
        self._teller.say(line)
        self.release()

    def flush(self) -> None:
        self._teller.flush()

    def _training(self) -> list[Work]:
        self._batch = self._data.batch(self.step)
        work = Work(self.adapter, self._batch.rows, self._batch.normaliser, self._data.objective)
        return self._engine.pieces(work)

    def _evaluation(self) -> Iterator[Work]:
        return chain.from_iterable(map(self._engine.pieces, self._data.evaluation(self.adapter)))

    def _retry(self, error: NonFinite) -> None:
        """The update was skipped. A passing fault of the device is gone the second time, a diverged job is not."""
        if self._retrying:
            raise error
        log.warning("job %s: step %d was not finite, trying it again", self.job_id, self.step + 1)
        self._pieces, self._retrying = None, True

    def _rate(self) -> float:
        settings = self._settings
        return learning_rate(
            settings.learning_rate, self.step, self.total_steps, settings.warmup_ratio, settings.lr_scheduler
        )

    def _evaluated(self, trained: StepMetrics, total: Measured) -> None:
        self._selection = judged(self._selection, self.step, total.mean_loss, self._settings.early_stopping)
        if self._selection is not None and self._selection.step == self.step:
            self._best = self._engine.weights(self.adapter)
        self._completed(trained, metrics.of_evaluation(total, self._data.preference))

    def _completed(self, trained: StepMetrics, evaluated: metrics.Evaluated) -> None:
        """A step, and its evaluation where it has one."""
        self._teller.metrics(trained, evaluated)
        if self.step == 1:
            # Whoever waits for the job to begin need not wait for a line full of events.
            self._teller.flush()
        ends_epoch = self.step % self._data.steps_an_epoch == 0
        if ends_epoch:
            self._saver.checkpoint_model(metrics.of_checkpoint_model(self.step, trained, evaluated))
        early = self._settings.early_stopping
        if self.step == self.total_steps:
            self._finish()
        elif early is not None and exhausted(self._selection, early):
            self._teller.note("early-stop", why_stopped(self.step, early))
            self._finish()
        elif self._saver.due(ends_epoch):
            self._checkpoint()

    def _checkpoint(self) -> None:
        self._saver.checkpoint(self._unvalidated, self._selection, self._best)

    def _begin(self, start: Start) -> None:
        """From the checkpoint, or else from the adapter, or else from what a new adapter is."""
        if start.adapter_dir is not None:
            self._engine.begin_with(self.adapter, read_adapter(Path(start.adapter_dir)))
        if start.checkpoint_dir is not None:
            self._resume(Path(start.checkpoint_dir))

    def _resume(self, directory: Path) -> None:
        found = self._saver.resume(directory)
        if found is not None:
            self._position.step, self._position.trained_tokens = found.state.step, found.state.trained_tokens
            self._unvalidated, self._selection, self._best = found.state.unvalidated, found.state.selection, found.best

    def _finish(self) -> None:
        best = self._selection
        if best is None or best.step == self.step:
            self._saver.deliver(self.step, None)
        else:
            told = f"The adapter of step {best.step}, with the lowest validation loss {best.loss:.4f}, is kept."
            self._teller.note("best", told)
            self._saver.deliver(best.step, self._best)
        self.release()
