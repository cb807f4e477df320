"""One import or merge under one lease: files fetched, converted in a child, stored, told.

Owns its folder, and the order of things. What the child does is `trainer.convert`'s.
"""

import asyncio
import logging
import shutil
import time
from pathlib import Path

import aiohttp
from pydantic import ValidationError

from service.contracts.manifest import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MANIFEST,
    AdapterManifest,
    ManifestFile,
    canonical_json,
)
from service.contracts.transfer import (
    ImportWork,
    MergeWork,
    SourceFile,
    TransferFinish,
    TransferLease,
    TransferRenew,
    TransferUploads,
)
from service.contracts.worker import JobFailure
from trainer.agent.endings import JobError, is_no_space, job_error
from trainer.agent.keeper import GONE, MARGIN
from trainer.agent.transfer_child import Broken, convert
from trainer.control import LeaseLost, Refused, ServiceAway, pause
from trainer.protocol import Import, Imported, Merge
from trainer.settings import TrainerSettings
from trainer.transfer import (
    Corrupt,
    Digest,
    ObjectGone,
    StoreAway,
    UrlRefused,
    digest,
    digest_of,
    download,
    upload,
)
from trainer.transfer_client import TransferClient

log = logging.getLogger(__name__)

FETCH_PATIENCE_SECONDS = 120.0
STORE_PATIENCE_SECONDS = 300.0
TELL_PATIENCE_SECONDS = 60.0
RELEASE_SECONDS = 2.0


class TransferRun:
    def __init__(
        self,
        settings: TrainerSettings,
        converter: tuple[str, ...],
        folder: Path,
        client: TransferClient,
        store: aiohttp.ClientSession,
        lease: TransferLease,
    ) -> None:
        self._settings, self._converter = settings, converter
        self._client, self._store, self._lease = client, store, lease
        self._folder = folder / f"{lease.id}-e{lease.epoch}"

    async def run(self) -> None:
        """Ends with the work, with the lease, or handed back where it is cancelled."""
        work, keep = asyncio.create_task(self._work()), asyncio.create_task(self._keep())
        try:
            await asyncio.wait({work, keep}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                log.warning("transfer %s: the lease is lost", self._lease.id)
        except asyncio.CancelledError:
            await _ended(work)
            await self._hand_back()
            raise
        finally:
            await _ended(work)
            await _ended(keep)
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        if not work.cancelled() and (error := work.exception()) is not None:
            raise error

    async def _work(self) -> None:
        try:
            finish = await self._done()
            log.info("transfer %s: %s", self._lease.id, finish.outcome)
        except LeaseLost:
            return
        except JobError as error:
            log.info("transfer %s: refused: %s", self._lease.id, error.failure.code)
            finish = self._finish("failed", error.failure)
        except (Broken, ServiceAway, Refused, StoreAway, UrlRefused, OSError, ValidationError) as error:
            log.warning("transfer %s: %s", self._lease.id, error)
            message = "The worker's disk is full." if isinstance(error, OSError) and is_no_space(error) else str(error)
            finish = self._finish("broken", JobFailure(code="worker_failed", message=message[:2000]))
        try:
            await self._client.finish(self._lease.id, finish, TELL_PATIENCE_SECONDS)
        except (LeaseLost, Refused, ServiceAway) as error:
            log.warning("transfer %s: its end could not be told: %s", self._lease.id, error)

    async def _done(self) -> TransferFinish:
        self._folder.mkdir()
        work = self._lease.work
        return await (self._import(work) if isinstance(work, ImportWork) else self._merge(work))

    async def _import(self, work: ImportWork) -> TransferFinish:
        source, out = self._folder / "source", self._folder / "adapter"
        source.mkdir()
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            await self._fetch(name, work.files[name].url, work.files[name], source)
        command = Import(
            source_dir=str(source), out_dir=str(out), base_model=self._lease.base_model, max_rank=work.max_rank
        )
        made = await convert(self._converter, command, self._settings.transfer_seconds)
        if not isinstance(made, Imported):
            raise Broken("the converter answered something else")
        sums = await asyncio.to_thread(_sums, out)
        manifest = AdapterManifest(
            base_model=self._lease.base_model,
            base_fingerprint=self._lease.base_fingerprint,
            chat_template_sha256=work.chat_template_sha256,
            rank=made.rank,
            alpha=made.alpha,
            target_modules=made.target_modules,
            job_id=self._lease.id,
            step=0,
            files=_files(sums),
            canary=made.canary,
        )
        request = TransferUploads(epoch=self._lease.epoch, adapter=manifest)
        await self._store_all(out, sums, request, canonical_json(manifest))
        return TransferFinish(epoch=self._lease.epoch, outcome="succeeded", adapter=manifest, changes=made.changes)

    async def _merge(self, work: MergeWork) -> TransferFinish:
        source, out = self._folder / "source", self._folder / "merged"
        source.mkdir()
        for file in work.adapter.manifest.files:
            await self._fetch(file.path, work.adapter.urls[file.path], file, source)
        await convert(
            self._converter, Merge(adapter_dir=str(source), out_dir=str(out)), self._settings.transfer_seconds
        )
        sums = await asyncio.to_thread(_sums, out)
        request = TransferUploads(epoch=self._lease.epoch, files=_files(sums))
        await self._store_all(out, sums, request, None)
        return TransferFinish(epoch=self._lease.epoch, outcome="succeeded", files=request.files)

    async def _fetch(self, name: str, url: str, expected: ManifestFile | SourceFile, folder: Path) -> None:
        try:
            await download(self._store, url, expected, folder / name, FETCH_PATIENCE_SECONDS)
        except Corrupt as error:
            message = f"{name} in storage is damaged or has changed: {error}. Upload it again and import that."
            raise job_error("file_corrupt", message) from error
        except ObjectGone as error:
            message = f"{name} is no longer in storage. Upload it again and import that."
            raise job_error("file_missing", message) from error

    async def _store_all(
        self, folder: Path, sums: dict[str, Digest], request: TransferUploads, manifest: bytes | None
    ) -> None:
        urls = (await self._client.uploads(self._lease.id, request, TELL_PATIENCE_SECONDS)).urls
        for name, file in sums.items():
            await upload(self._store, urls[name], folder / name, file, STORE_PATIENCE_SECONDS)
        if manifest is not None:
            await upload(self._store, urls[MANIFEST], manifest, digest_of(manifest), STORE_PATIENCE_SECONDS)

    async def _keep(self) -> None:
        """Renews until the lease is lost or may have run out."""
        lease, failures = self._lease, 0
        # The claim's answer was just read, and a renewal tells how long it truly holds.
        deadline = time.monotonic() + lease.ttl_seconds * (1 - MARGIN)
        while (left := deadline - time.monotonic()) > 0:
            sent = time.monotonic()
            try:
                control = await self._client.renew(lease.id, TransferRenew(epoch=lease.epoch), left)
            except LeaseLost:
                return
            except (Refused, ServiceAway) as error:
                if isinstance(error, Refused) and error.status in GONE:
                    return
                await asyncio.sleep(min(pause(failures), max(0.0, deadline - time.monotonic())))
                failures += 1
                continue
            deadline, failures = sent + control.ttl_seconds * (1 - MARGIN), 0
            await asyncio.sleep(lease.renew_seconds)

    async def _hand_back(self) -> None:
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._client.finish(self._lease.id, self._finish("released", None), 0)
        except (TimeoutError, LeaseLost, Refused, ServiceAway) as error:
            log.warning("transfer %s: left to its lease: %s", self._lease.id, type(error).__name__)

    def _finish(self, outcome: str, failure: JobFailure | None) -> TransferFinish:
        return TransferFinish.model_validate({"epoch": self._lease.epoch, "outcome": outcome, "failure": failure})


async def _ended(task: "asyncio.Task[None]") -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait({task})


def _sums(folder: Path) -> dict[str, Digest]:
    return {path.name: digest(path) for path in sorted(folder.iterdir())}


def _files(sums: dict[str, Digest]) -> tuple[ManifestFile, ...]:
    return tuple(ManifestFile(path=name, sha256=file.sha256, size=file.size) for name, file in sums.items())
