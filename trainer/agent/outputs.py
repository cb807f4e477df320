"""What a run leaves behind: checkpoints and the adapter, hashed, uploaded with the manifest last, then made known.

Owns local checkpoint folders from the moment the engine has written them. The newest one stays on disk, so that a dead
engine's jobs resume from it without asking storage. A checkpoint that cannot be stored costs a warning, never the job.
"""

import asyncio
import logging
import shutil
import time
from pathlib import Path

import aiohttp
from pydantic import ValidationError

from service.contracts.manifest import (
    MANIFEST,
    AdapterManifest,
    CheckpointManifest,
    ManifestFile,
    adapter_id_of,
    canonical_json,
)
from service.contracts.worker import CheckpointDone, Lease, UploadRequest
from trainer.agent.endings import WorkerUnfit
from trainer.agent.orders import Orders
from trainer.agent.reporter import Reporter
from trainer.control import LeaseLost, Refused, ServiceAway, ServiceClient, pause
from trainer.protocol import CheckpointWritten, Trained
from trainer.transfer import Digest, ObjectGone, StoreAway, UrlRefused, digest, digest_of, upload

log = logging.getLogger(__name__)

CHECKPOINT_PATIENCE_SECONDS = 60.0
ADAPTER_PATIENCE_SECONDS = 900.0
TRANSFER_PATIENCE_SECONDS = 60.0


class Outputs:
    def __init__(
        self, lease: Lease, service: ServiceClient, store: aiohttp.ClientSession, reporter: Reporter, orders: Orders
    ) -> None:
        self._lease, self._service, self._store = lease, service, store
        self._reporter, self._orders = reporter, orders
        self._job = lease.spec.job_id
        self._newest: CheckpointWritten | None = None
        self._waiting: CheckpointWritten | None = None
        self._uploader: asyncio.Task[None] | None = None

    @property
    def newest_checkpoint(self) -> Path | None:
        """The newest one of this lease, complete and on this disk."""
        return Path(self._newest.directory) if self._newest else None

    def checkpoint(self, written: CheckpointWritten) -> None:
        """Uploads in the background. One that still waits is skipped for a newer one."""
        if self._waiting:
            shutil.rmtree(self._waiting.directory, ignore_errors=True)
        elif self._newest and (self._uploader is None or self._uploader.done()):
            shutil.rmtree(self._newest.directory, ignore_errors=True)
        self._newest = self._waiting = written
        if self._uploader is None or self._uploader.done():
            self._uploader = asyncio.create_task(self._upload_waiting())

    async def settle(self) -> None:
        """Until the newest checkpoint is stored or given up."""
        if self._uploader:
            await asyncio.shield(self._uploader)

    async def close(self) -> None:
        if self._uploader and not self._uploader.done():
            self._uploader.cancel()
            await asyncio.wait({self._uploader})

    async def adapter(self, trained: Trained) -> AdapterManifest:
        """Raises WorkerUnfit where storage stays away, Refused where the service will not have it, LeaseLost."""
        folder = Path(trained.directory)
        sums = await asyncio.to_thread(_sums, folder)
        spec = self._lease.spec
        manifest = AdapterManifest(
            base_model=spec.base_model,
            base_fingerprint=spec.base_fingerprint,
            chat_template_sha256=spec.chat_template_sha256,
            rank=spec.hyperparameters.lora_rank,
            alpha=spec.hyperparameters.lora_alpha,
            target_modules=trained.target_modules,
            job_id=spec.job_id,
            step=trained.step,
            files=_files(sums),
        )
        request = UploadRequest(epoch=self._lease.epoch, kind="adapter", adapter=manifest)
        deadline, attempt = time.monotonic() + ADAPTER_PATIENCE_SECONDS, 0
        while True:
            try:
                await self._store_all(folder, sums, request, manifest, TRANSFER_PATIENCE_SECONDS)
                break
            except (ServiceAway, StoreAway, UrlRefused, ObjectGone) as error:
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
            except (ServiceAway, Refused, StoreAway, UrlRefused, ObjectGone, OSError, ValidationError) as error:
                log.warning("job %s: checkpoint of step %d not stored: %s", self._job, written.step, error)
                self._reporter.note(
                    f"The checkpoint of step {written.step} could not be stored ({type(error).__name__}); "
                    "the next one is tried again. Training goes on.",
                    "warn",
                    code="checkpoint_not_stored",
                    step=written.step,
                )
            if self._newest is not written:
                shutil.rmtree(written.directory, ignore_errors=True)

    async def _store_checkpoint(self, written: CheckpointWritten) -> None:
        folder = Path(written.directory)
        sums = await asyncio.to_thread(_sums, folder)
        manifest = CheckpointManifest(
            job_id=self._job,
            epoch=self._lease.epoch,
            step=written.step,
            trained_tokens=written.trained_tokens,
            files=_files(sums),
        )
        request = UploadRequest(epoch=self._lease.epoch, kind="checkpoint", checkpoint=manifest)
        await self._store_all(folder, sums, request, manifest, CHECKPOINT_PATIENCE_SECONDS)
        done = CheckpointDone(epoch=self._lease.epoch, manifest=manifest)
        control = await self._service.checkpoint(self._job, done, CHECKPOINT_PATIENCE_SECONDS)
        self._orders.give(control.want)
        log.info("job %s: checkpoint of step %d stored", self._job, written.step)

    async def _store_all(
        self,
        folder: Path,
        sums: dict[str, Digest],
        request: UploadRequest,
        manifest: AdapterManifest | CheckpointManifest,
        patience: float,
    ) -> None:
        urls = (await self._service.uploads(self._job, request, patience)).urls
        if missing := {*sums, MANIFEST} - set(urls):
            raise Refused(200, "incomplete_targets", f"no upload URL for {', '.join(sorted(missing))}")
        for name, file in sums.items():
            await upload(self._store, urls[name], folder / name, file, patience)
        body = canonical_json(manifest)
        await upload(self._store, urls[MANIFEST], body, digest_of(body), patience)


def _sums(folder: Path) -> dict[str, Digest]:
    return {path.name: digest(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}


def _files(sums: dict[str, Digest]) -> tuple[ManifestFile, ...]:
    return tuple(ManifestFile(path=name, sha256=file.sha256, size=file.size) for name, file in sums.items())
