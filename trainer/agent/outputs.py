"""What a run leaves behind: checkpoints to resume from, checkpoint models to use meanwhile, and the adapter.

Owns local checkpoint folders from the moment the engine has written them. The newest one stays on disk, so that a dead
engine's jobs resume from it without asking storage. A checkpoint that cannot be stored costs a warning, never the job.
How a folder gets into storage is `storing`, checkpoint models are `models`.
"""

import asyncio
import logging
import shutil
import time
from pathlib import Path

import aiohttp

from service.contracts.manifest import AdapterManifest, adapter_id_of
from service.contracts.worker import CheckpointDone, Lease
from trainer.agent.endings import WorkerUnfit
from trainer.agent.models import CheckpointModels
from trainer.agent.orders import Orders
from trainer.agent.reporter import Reporter
from trainer.agent.storing import AWAY, NOT_STORED, Storing
from trainer.control import LeaseLost, ServiceAway, ServiceClient, pause
from trainer.protocol import CheckpointWritten, Trained

log = logging.getLogger(__name__)

CHECKPOINT_PATIENCE_SECONDS = 60.0
ADAPTER_PATIENCE_SECONDS = 900.0
TRANSFER_PATIENCE_SECONDS = 60.0


class Outputs:
    def __init__(
        self, lease: Lease, service: ServiceClient, store: aiohttp.ClientSession, reporter: Reporter, orders: Orders
    ) -> None:
        self._service, self._reporter, self._orders = service, reporter, orders
        self._job, self._epoch = lease.spec.job_id, lease.epoch
        self._storing = Storing(lease, service, store)
        self.models = CheckpointModels(self._storing, service, reporter, orders)
        self._newest: CheckpointWritten | None = None
        self._waiting: CheckpointWritten | None = None
        self._uploader: asyncio.Task[None] | None = None

    @property
    def newest_checkpoint(self) -> Path | None:
        """The newest one of this lease, complete and on this disk."""
        return Path(self._newest.directory) if self._newest else None

    def checkpoint(self, written: CheckpointWritten) -> None:
        """Uploads in the background. One that still waits is skipped for a newer one."""
        idle = self._uploader is None or self._uploader.done()
        old = self._waiting or (self._newest if idle else None)
        self._newest = self._waiting = written
        if old:
            self._remove(old)
        if idle:
            self._uploader = asyncio.create_task(self._upload_waiting())

    async def settle(self) -> None:
        """Until the newest checkpoint and the checkpoint models are stored or given up."""
        if self._uploader:
            await asyncio.shield(self._uploader)
        await self.models.settle()

    async def close(self) -> None:
        await self.models.close()
        if self._uploader and not self._uploader.done():
            self._uploader.cancel()
            await asyncio.wait({self._uploader})

    async def adapter(self, trained: Trained) -> AdapterManifest:
        """Raises WorkerUnfit where storage stays away, Refused where the service will not have it, LeaseLost."""
        step = trained.step if trained.adapter_step is None else trained.adapter_step
        deadline, attempt = time.monotonic() + ADAPTER_PATIENCE_SECONDS, 0
        while True:
            try:
                manifest = await self._storing.adapter(trained, step, TRANSFER_PATIENCE_SECONDS)
                break
            except AWAY as error:
                if time.monotonic() > deadline:
                    raise WorkerUnfit(f"The adapter could not be stored ({error}).") from error
                log.warning("job %s: adapter not stored yet: %s", self._job, error)
            await asyncio.sleep(pause(attempt))
            attempt += 1
        log.info("job %s: adapter %s stored", self._job, adapter_id_of(manifest)[:12])
        return manifest

    async def _upload_waiting(self) -> None:
        while written := self._waiting:
            self._waiting = None
            try:
                await self._store_checkpoint(written)
            except LeaseLost:
                self._orders.give("lost")
                return
            except NOT_STORED as error:
                log.warning("job %s: checkpoint of step %d not stored: %s", self._job, written.step, error)
                self._reporter.note(
                    f"The checkpoint of step {written.step} could not be stored ({type(error).__name__}); "
                    "the next one is tried again. Training goes on.",
                    "warn",
                    code="checkpoint_not_stored",
                    step=written.step,
                )
            self._remove(written)

    def _remove(self, written: CheckpointWritten) -> None:
        """Unless it is the newest: a job that is stopped right after a checkpoint writes the same folder again."""
        if self._newest is None or self._newest.directory != written.directory:
            shutil.rmtree(written.directory, ignore_errors=True)

    async def _store_checkpoint(self, written: CheckpointWritten) -> None:
        manifest = await self._storing.checkpoint(written, CHECKPOINT_PATIENCE_SECONDS)
        await self.models.behind(written.step)
        # Whoever resumes from it begins behind its steps and reports none of them again.
        if not await self._reporter.catch_up(CHECKPOINT_PATIENCE_SECONDS):
            raise ServiceAway("the steps before it could not be reported")
        done = CheckpointDone(epoch=self._epoch, manifest=manifest)
        control = await self._service.checkpoint(self._job, done, CHECKPOINT_PATIENCE_SECONDS)
        self._orders.give(control.want)
        log.info("job %s: checkpoint of step %d stored", self._job, written.step)
