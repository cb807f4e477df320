"""Tenants, files and jobs put in place behind the API, and a worker's moves, for tests of jobs, leases and adapters.

Everything goes through the product's own functions, the real database and the real store.
"""

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, text

from service.contracts.ids import FileId, JobId, ProjectId, new_file_id, new_key_id, new_organization_id, new_project_id
from service.contracts.job import JobSpec
from service.contracts.layout import file_key
from service.contracts.manifest import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MANIFEST,
    AdapterManifest,
    CheckpointManifest,
    ManifestFile,
    adapter_id_of,
    canonical_json,
)
from service.contracts.worker import (
    CheckpointDone,
    CheckpointMetrics,
    CheckpointModel,
    ClaimRequest,
    Control,
    Event,
    Finish,
    Finished,
    Lease,
    Report,
    UploadRequest,
)
from service.files.models import FileRow
from service.jobs.create import create
from service.jobs.models import EventRow, JobRow
from service.jobs.schemas import CreateJob
from service.leases import checkpoint_models, checkpoints, claim, finish, report, uploads
from service.resources import Resources
from service.settings import ServiceSettings
from service.tenants.keys import hash_key, make_key, public_id_of, redact
from service.tenants.models import KeyRow, OrganizationRow, ProjectRow
from tests.service.weights import lora_file

LINE = b'{"messages":[{"role":"user","content":"2+2"},{"role":"assistant","content":"4"}]}\n'


async def _present() -> bool:
    return False


@dataclass
class Stage:
    resources: Resources
    numbers: "itertools.count[int]"

    async def project(self, *, weight: float = 1.0, max_running_jobs: int = 4) -> ProjectId:
        project, number = new_project_id(), next(self.numbers)
        async with self.resources.database.control() as session:
            organization = OrganizationRow(id=new_organization_id(), name=f"acme-{number}")
            session.add(organization)
            await session.flush()
            session.add(
                ProjectRow(
                    id=project,
                    organization_id=organization.id,
                    name=f"project-{number}",
                    weight=weight,
                    max_running_jobs=max_running_jobs,
                )
            )
        return project

    async def key(self, project: ProjectId) -> str:
        key = make_key()
        async with self.resources.database.control() as session:
            session.add(
                KeyRow(
                    id=new_key_id(),
                    project_id=project,
                    public_id=public_id_of(key),
                    hash=hash_key(key),
                    name="test",
                    redacted_value=redact(key),
                )
            )
        return key

    async def file(self, project: ProjectId, *, examples: int = 20, **columns: Any) -> FileId:
        file, body = new_file_id(), LINE * examples
        await asyncio.to_thread(self.resources.store.put, file_key(project, file), body)
        values: dict[str, Any] = {
            "purpose": "fine-tune",
            "status": "processed",
            "filename": "train.jsonl",
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "examples": examples,
        }
        async with self.resources.database.tenant(project) as session:
            session.add(FileRow(id=file, project_id=project, **{**values, **columns}))
        return file

    async def jobs(self, project: ProjectId, count: int = 1, **body: Any) -> list[JobId]:
        """`count` queued jobs over one file, created at the same moment."""
        request = CreateJob.model_validate({"model": "weft-tiny", "training_file": await self.file(project), **body})
        async with self.resources.database.tenant(project) as session:
            made = [await create(session, self.resources, request) for _ in range(count)]
        return [JobId(job.id) for job in made]

    async def job(self, project: ProjectId, **body: Any) -> JobId:
        return (await self.jobs(project, **body))[0]

    async def row(self, job: str) -> JobRow:
        async with self.resources.database.control() as session:
            return (await session.scalars(select(JobRow).where(JobRow.id == job))).one()

    async def messages(self, job: str) -> list[str]:
        """The job's history, oldest first."""
        async with self.resources.database.control() as session:
            query = select(EventRow.message).where(EventRow.job_id == job).order_by(EventRow.seq)
            return list(await session.scalars(query))

    async def rows(self, query: str, **parameters: Any) -> Sequence[Any]:
        async with self.resources.database.control() as session:
            return (await session.execute(text(query), parameters)).all()

    async def expire(self, job: str) -> None:
        """Ends a job's lease now, as if its worker had been silent for the whole of it."""
        async with self.resources.database.control() as session:
            past = text("update jobs set lease_until = now() - interval '1 s' where id = :job")
            await session.execute(past, {"job": job})

    async def forward(self, job: str) -> None:
        """Ends the delay before a job may be claimed again."""
        async with self.resources.database.control() as session:
            await session.execute(text("update jobs set not_before = now() where id = :job"), {"job": job})

    # A worker's moves.

    async def claim(self, *, wait_seconds: float = 0, worker: str = "worker") -> Lease | None:
        base = self.resources.settings.base_models[0]
        request = ClaimRequest(
            worker=worker, base_model=base.name, base_fingerprint=base.fingerprint, wait_seconds=wait_seconds
        )
        return await claim.claim(self.resources, request, _present)

    async def claimed(self) -> Lease:
        lease = await self.claim(wait_seconds=5)
        assert lease is not None, "there was a job to claim"
        return lease

    async def report(self, lease: Lease, *, step: int = 1, tokens: int = 0, events: tuple[Event, ...] = ()) -> Control:
        request = Report(
            epoch=lease.epoch, phase="training", step=step, total_steps=100, trained_tokens=tokens, events=events
        )
        return await report.report(self.resources, lease.spec.job_id, request)

    async def upload_adapter(self, lease: Lease, *, step: int = 100, weights: bytes = b"weights") -> AdapterManifest:
        files = adapter_files(lease.spec, weights)
        manifest = adapter_manifest(lease.spec, step, files)
        await self.put(uploads.adapter_folder(lease.spec, manifest), {**files, MANIFEST: canonical_json(manifest)})
        return manifest

    async def uploaded_adapter(self, lease: Lease, *, step: int = 100, weights: bytes = b"weights") -> AdapterManifest:
        """Stored in the way that workers must go: the service is asked for a place first."""
        manifest = adapter_manifest(lease.spec, step, adapter_files(lease.spec, weights))
        request = UploadRequest(epoch=lease.epoch, kind="adapter", adapter=manifest)
        await uploads.targets(self.resources, lease.spec.job_id, request)
        return await self.upload_adapter(lease, step=step, weights=weights)

    async def checkpoint_model(
        self, lease: Lease, *, step: int, loss: float | None = None, weights: bytes | None = None
    ) -> AdapterManifest:
        """A published checkpoint model; its weights follow from its step where none are given."""
        manifest = await self.uploaded_adapter(lease, step=step, weights=weights or f"weights {step}".encode())
        metrics = CheckpointMetrics(step=step, train_loss=0.5, full_valid_loss=loss)
        request = CheckpointModel(epoch=lease.epoch, adapter=manifest, metrics=metrics)
        await checkpoint_models.register(self.resources, lease.spec.job_id, request)
        return manifest

    async def upload_checkpoint(self, lease: Lease, *, step: int, tokens: int = 0) -> CheckpointManifest:
        files = {"state.safetensors": f"state {step} of {lease.epoch}".encode()}
        manifest = CheckpointManifest(
            job_id=lease.spec.job_id, epoch=lease.epoch, step=step, trained_tokens=tokens, files=listed(files)
        )
        folder = uploads.checkpoint_folder(lease.spec, manifest)
        await self.put(folder, {**files, MANIFEST: canonical_json(manifest)})
        return manifest

    async def checkpoint(self, lease: Lease, *, step: int, tokens: int = 0) -> Control:
        manifest = await self.upload_checkpoint(lease, step=step, tokens=tokens)
        request = CheckpointDone(epoch=lease.epoch, manifest=manifest)
        return await checkpoints.register(self.resources, lease.spec.job_id, request)

    async def succeed(self, lease: Lease, *, tokens: int = 1000) -> Finished:
        manifest = await self.upload_adapter(lease)
        return await self.finish(lease, outcome="succeeded", tokens=tokens, adapter=manifest)

    async def finish(self, lease: Lease, *, outcome: str, tokens: int = 0, **fields: Any) -> Finished:
        request = {"epoch": lease.epoch, "outcome": outcome, "trained_tokens": tokens, "step": 100, **fields}
        return await finish.finish(self.resources, lease.spec.job_id, Finish.model_validate(request))

    async def put(self, folder: str, files: dict[str, bytes]) -> None:
        for name, body in files.items():
            await asyncio.to_thread(self.resources.store.put, folder + name, body)

    async def keys(self, prefix: str) -> list[str]:
        return await asyncio.to_thread(self.resources.store.keys, prefix)


def listed(files: dict[str, bytes]) -> tuple[ManifestFile, ...]:
    return tuple(
        ManifestFile(path=name, sha256=hashlib.sha256(body).hexdigest(), size=len(body)) for name, body in files.items()
    )


def adapter_files(spec: JobSpec, mark: bytes) -> dict[str, bytes]:
    """Of the job's rank, other weights for each mark."""
    return {ADAPTER_CONFIG: b"{}", ADAPTER_WEIGHTS: lora_file(mark, spec.hyperparameters.lora_rank)}


def adapter_manifest(spec: JobSpec, step: int, files: dict[str, bytes]) -> AdapterManifest:
    return AdapterManifest(
        base_model=spec.base_model,
        base_fingerprint=spec.base_fingerprint,
        chat_template_sha256=spec.chat_template_sha256,
        rank=spec.hyperparameters.lora_rank,
        alpha=spec.hyperparameters.lora_alpha,
        target_modules=("q_proj", "v_proj"),
        job_id=spec.job_id,
        step=step,
        files=listed(files),
    )


@asynccontextmanager
async def open_stage(settings: ServiceSettings) -> AsyncIterator[Stage]:
    """A stage without a running application, for tests below the HTTP routes."""
    resources = Resources.of(settings)
    await asyncio.to_thread(resources.store.ensure_bucket)
    try:
        yield Stage(resources, itertools.count())
    finally:
        await resources.database.close()


__all__ = ["Stage", "adapter_files", "adapter_id_of", "adapter_manifest", "listed", "open_stage"]
