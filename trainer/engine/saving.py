"""What one job leaves on the disk: checkpoints to resume from, checkpoint models to use, and the adapter it delivers.

Owns folders, when a checkpoint is due, and what a full disk costs. What lies in the folders is `trainer.checkpoint`'s
and `trainer.export`'s; the agent stores and removes them.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from service.contracts.servable import Unservable
from service.contracts.worker import CheckpointMetrics
from trainer.checkpoint import (
    Checkpoint,
    CheckpointInvalid,
    CheckpointState,
    Selection,
    StepMetrics,
    read_checkpoint,
    spec_hash,
    write_checkpoint,
)
from trainer.engine.adapter import Adapter
from trainer.engine.canary import canary
from trainer.engine.engine import Engine
from trainer.engine.telling import Teller
from trainer.protocol import CheckpointModelWritten, CheckpointWritten, Start, Trained

log = logging.getLogger("trainer.engine")

EARLY = 4
"""At an epoch's end a checkpoint is due after this part of the time between two."""


class Saver:
    """Of one job and its adapter."""

    def __init__(
        self,
        engine: Engine,
        adapter: Adapter,
        start: Start,
        rows: int,
        teller: Teller,
        seconds: float,
        clock: Callable[[], float],
    ) -> None:
        """A checkpoint is due each so many `seconds`."""
        self._engine, self._adapter, self._teller = engine, adapter, teller
        self._base_model, self._work_dir = start.spec.base_model, Path(start.work_dir)
        self._hash = spec_hash(start.spec, rows)
        self._position = teller.position
        self._seconds, self._clock = seconds, clock
        self._last = clock()

    def resume(self, directory: Path) -> Checkpoint | None:
        """Loads the adapter; None where the checkpoint is unusable and the job starts over."""
        try:
            found = read_checkpoint(directory, self._hash)
            self._engine.load(self._adapter, found.adapter, found.optimizer, found.state.step)
        except (CheckpointInvalid, KeyError, RuntimeError) as error:
            # The same data in the same order gives the same adapter, so starting over loses time and nothing else.
            log.error("job %s: starting over: %s", self._position.job_id, error)
            self._teller.warn("restart", f"The checkpoint cannot be used: {error}. Training starts over.")
            return None
        return found

    def due(self, ends_epoch: bool) -> bool:
        return self._clock() - self._last >= (self._seconds / EARLY if ends_epoch else self._seconds)

    def checkpoint(
        self, unvalidated: StepMetrics | None, selection: Selection | None, best: dict[str, Tensor] | None
    ) -> None:
        """A disk that is full costs a checkpoint, never the job."""
        here = self._position
        directory = self._work_dir / "checkpoints" / f"step-{here.step}"
        state = CheckpointState(
            job_id=here.job_id,
            spec_sha256=self._hash,
            step=here.step,
            trained_tokens=here.trained_tokens,
            unvalidated=unvalidated,
            selection=selection,
        )
        self._last = self._clock()
        try:
            write_checkpoint(directory, state, *self._engine.save(self._adapter), best)
        except OSError as error:
            log.error("job %s: no checkpoint at step %d: %s", here.job_id, here.step, error.strerror)
            self._teller.warn(f"c{here.step}", f"The checkpoint of step {here.step} could not be written.")
            return
        self._teller.say(
            CheckpointWritten(
                job_id=here.job_id, step=here.step, trained_tokens=here.trained_tokens, directory=str(directory)
            )
        )

    def checkpoint_model(self, metrics: CheckpointMetrics) -> None:
        """A disk that is full costs this one, never the job; so does what could not be served as it is now."""
        here = self._position
        directory = self._work_dir / "checkpoint-models" / f"step-{here.step}"
        try:
            targets = self._engine.export(self._adapter, directory, self._base_model)
        except OSError as error:
            log.error("job %s: no checkpoint model at step %d: %s", here.job_id, here.step, error.strerror)
            self._teller.warn(f"a{here.step}", f"The checkpoint model of step {here.step} could not be written.")
            return
        except Unservable as error:
            self._teller.warn(f"a{here.step}", f"The model of step {here.step} is not listed: {error}.")
            return
        self._teller.say(
            CheckpointModelWritten(
                job_id=here.job_id,
                step=here.step,
                directory=str(directory),
                target_modules=targets,
                canary=canary(self._engine, self._adapter),
                metrics=metrics,
            )
        )

    def deliver(self, step: int, weights: dict[str, Tensor] | None) -> None:
        """The adapter as it is now, or as it was with those `weights` at an earlier `step`, which it takes back.

        Raises Unservable.
        """
        here = self._position
        directory = self._work_dir / "adapter"
        if weights is not None:
            self._engine.begin_with(self._adapter, weights)
        targets = self._engine.export(self._adapter, directory, self._base_model)
        self._teller.say(
            Trained(
                job_id=here.job_id,
                step=here.step,
                adapter_step=step if step != here.step else None,
                trained_tokens=here.trained_tokens,
                directory=str(directory),
                target_modules=targets,
                canary=canary(self._engine, self._adapter),
            )
        )
