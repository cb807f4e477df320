"""Folders into the object store: hashed, uploaded with the manifest last. Of one job under one lease.

Owns the order of an upload and what can go wrong with it. When it is tried, and what a failure costs the job, is for
`outputs` and `models`.
"""

import asyncio
from pathlib import Path

import aiohttp
from pydantic import ValidationError

from service.contracts.manifest import MANIFEST, AdapterManifest, CheckpointManifest, ManifestFile, canonical_json
from service.contracts.worker import Lease, UploadRequest
from trainer.control import Refused, ServiceAway, ServiceClient
from trainer.protocol import CheckpointModelWritten, CheckpointWritten, Trained
from trainer.transfer import Digest, ObjectGone, StoreAway, UrlRefused, digest, digest_of, upload

AWAY = (ServiceAway, StoreAway, UrlRefused, ObjectGone)
"""Another try, with new URLs, may go well."""

NOT_STORED = (*AWAY, Refused, OSError, ValidationError)
"""Everything but a lost lease that can keep a folder from being stored."""


class Storing:
    """Each call raises one of NOT_STORED, or LeaseLost; single requests are repeated for `patience` seconds."""

    def __init__(self, lease: Lease, service: ServiceClient, store: aiohttp.ClientSession) -> None:
        self._lease, self._service, self._store = lease, service, store
        self.job, self.epoch = lease.spec.job_id, lease.epoch

    async def adapter(self, written: Trained | CheckpointModelWritten, step: int, patience: float) -> AdapterManifest:
        folder = Path(written.directory)
        sums = await asyncio.to_thread(_sums, folder)
        spec = self._lease.spec
        manifest = AdapterManifest(
            base_model=spec.base_model,
            base_fingerprint=spec.base_fingerprint,
            chat_template_sha256=spec.chat_template_sha256,
            rank=spec.hyperparameters.lora_rank,
            alpha=spec.hyperparameters.lora_alpha,
            target_modules=written.target_modules,
            job_id=self.job,
            step=step,
            files=_files(sums),
            canary=written.canary,
        )
        request = UploadRequest(epoch=self.epoch, kind="adapter", adapter=manifest)
        await self._store_all(folder, sums, request, manifest, patience)
        return manifest

    async def checkpoint(self, written: CheckpointWritten, patience: float) -> CheckpointManifest:
        folder = Path(written.directory)
        sums = await asyncio.to_thread(_sums, folder)
        manifest = CheckpointManifest(
            job_id=self.job,
            epoch=self.epoch,
            step=written.step,
            trained_tokens=written.trained_tokens,
            files=_files(sums),
        )
        request = UploadRequest(epoch=self.epoch, kind="checkpoint", checkpoint=manifest)
        await self._store_all(folder, sums, request, manifest, patience)
        return manifest

    async def _store_all(
        self,
        folder: Path,
        sums: dict[str, Digest],
        request: UploadRequest,
        manifest: AdapterManifest | CheckpointManifest,
        patience: float,
    ) -> None:
        urls = (await self._service.uploads(self.job, request, patience)).urls
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
