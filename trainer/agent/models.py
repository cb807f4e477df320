"""Checkpoint models of one run: adapters of a job that goes on, stored and made known one after the other.

Owns their local folders from the moment the engine has written them. One that cannot be stored, or that newer ones
overtake, costs a warning, never the job.
"""

import asyncio
import logging
import shutil

from service.contracts.worker import CheckpointModel
from trainer.agent.orders import Orders
from trainer.agent.reporter import Reporter
from trainer.agent.storing import NOT_STORED, Storing
from trainer.control import LeaseLost, ServiceClient
from trainer.protocol import CheckpointModelWritten

log = logging.getLogger(__name__)

MODEL_PATIENCE_SECONDS = 60.0
SETTLE_SECONDS = 60.0
MOST_WAITING = 3


class CheckpointModels:
    def __init__(self, storing: Storing, service: ServiceClient, reporter: Reporter, orders: Orders) -> None:
        self._storing, self._service, self._reporter, self._orders = storing, service, reporter, orders
        self._waiting: list[CheckpointModelWritten] = []
        self._current: CheckpointModelWritten | None = None
        self._steps: set[int] = set()
        self._uploader: asyncio.Task[None] | None = None
        self._done = asyncio.Event()
        """Set, and made anew, each time one has been stored or given up."""

    def add(self, written: CheckpointModelWritten) -> None:
        """Uploads in the background, in order. Only the newest few may wait."""
        if written.step in self._steps:  # A job that went back to a checkpoint writes again what it wrote before.
            _remove(written)
            return
        self._steps.add(written.step)
        self._waiting.append(written)
        while len(self._waiting) > MOST_WAITING:
            self._give_up(self._waiting.pop(0), "newer ones wait to be stored")
        if self._uploader is None or self._uploader.done():
            self._uploader = asyncio.create_task(self._upload_waiting())

    async def behind(self, step: int) -> None:
        """Until no model of that step or an earlier one is on its way.

        A job that resumes from a checkpoint writes no model of before it again, so the models are stored first.
        """
        while any(written.step <= step for written in (*filter(None, [self._current]), *self._waiting)):
            await self._done.wait()

    async def settle(self) -> None:
        """Until all are stored or given up; what is left after `SETTLE_SECONDS` is given up."""
        if self._uploader is None:
            return
        _, late = await asyncio.wait({self._uploader}, timeout=SETTLE_SECONDS)
        if late:
            await self.close()
            for written in (*filter(None, [self._current]), *self._waiting):
                self._give_up(written, "storage takes too long")
            self._current, self._waiting = None, []
            self._announce()

    async def close(self) -> None:
        if self._uploader and not self._uploader.done():
            self._uploader.cancel()
            await asyncio.wait({self._uploader})

    async def _upload_waiting(self) -> None:
        while self._waiting:
            written = self._current = self._waiting.pop(0)
            try:
                await self._store(written)
            except LeaseLost:
                self._orders.give("lost")
                return
            except NOT_STORED as error:
                log.warning("job %s: model of step %d: %s", self._storing.job, written.step, error)
                self._give_up(written, type(error).__name__)
            else:
                _remove(written)
            finally:
                self._current = None
                self._announce()

    async def _store(self, written: CheckpointModelWritten) -> None:
        manifest = await self._storing.adapter(written, written.step, MODEL_PATIENCE_SECONDS)
        model = CheckpointModel(epoch=self._storing.epoch, adapter=manifest, metrics=written.metrics)
        control = await self._service.checkpoint_model(self._storing.job, model, MODEL_PATIENCE_SECONDS)
        self._orders.give(control.want)
        log.info("job %s: model of step %d stored", self._storing.job, written.step)

    def _announce(self) -> None:
        self._done.set()
        self._done = asyncio.Event()

    def _give_up(self, written: CheckpointModelWritten, reason: str) -> None:
        log.warning("job %s: model of step %d not stored: %s", self._storing.job, written.step, reason)
        self._reporter.note(
            f"The model of step {written.step} could not be stored ({reason}) and will not be listed. "
            "The job goes on without it.",
            "warn",
            code="checkpoint_model_not_stored",
            step=written.step,
        )
        self._steps.discard(written.step)
        _remove(written)


def _remove(written: CheckpointModelWritten) -> None:
    shutil.rmtree(written.directory, ignore_errors=True)
