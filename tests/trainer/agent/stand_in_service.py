"""The worker API in memory, over real HTTP, for one agent under test.

Follows `service.contracts.worker` and no more: no tenants, no database. Keeps everything that arrived, so that a test
can ask what the agent did, and breaks where a test says so.
"""

import asyncio
import hashlib
import time
from dataclasses import dataclass, field

from aiohttp import web

from service.contracts.job import FileRef, JobSpec, Want
from service.contracts.manifest import (
    MANIFEST,
    AdapterManifest,
    CheckpointManifest,
    adapter_id_of,
    canonical_json,
)
from service.contracts.worker import (
    AdapterRef,
    CheckpointDone,
    CheckpointModel,
    CheckpointRef,
    ClaimRequest,
    Control,
    Event,
    Finish,
    Finished,
    Lease,
    RenewRequest,
    Report,
    UploadRequest,
    UploadTargets,
)
from tests.trainer.agent.stand_in_store import StandInStore

STATUS_AFTER = {"released": "queued"}


@dataclass
class Job:
    spec: JobSpec
    training_file: str
    status: str = "queued"
    epoch: int = 0
    want: Want = "run"
    lease_until: float = 0.0
    claimed_at: float = 0.0
    checkpoint: CheckpointManifest | None = None
    start_adapter: AdapterManifest | None = None
    checkpoints: list[CheckpointManifest] = field(default_factory=list)
    models: list[CheckpointModel] = field(default_factory=list)
    events: dict[str, Event] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)
    finishes: list[Finish] = field(default_factory=list)

    def codes(self) -> list[str]:
        return [event.data["code"] for event in self.events.values() if "code" in event.data]


class StandInService(StandInStore):
    def __init__(self, ttl: float = 30.0, renew: float = 0.3) -> None:
        super().__init__()
        self.ttl, self.renew_seconds = ttl, renew
        self.jobs: dict[str, Job] = {}
        self._runner: web.AppRunner | None = None
        self._changed = asyncio.Event()

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.add_routes(
            [
                web.post("/internal/leases", self._claim),
                web.post("/internal/leases/{job}/{verb}", self._leased),
                web.get("/objects/{key:.+}", self._get),
                web.put("/objects/{key:.+}", self._put),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        assert self._runner
        await self._runner.cleanup()

    # What tests do.

    def add_job(self, spec: JobSpec, training_file: bytes) -> Job:
        key = f"files/{spec.job_id}"
        self.objects[key] = training_file
        job = self.jobs[spec.job_id] = Job(spec, key)
        self._changed.set()
        return job

    def requeue(self, job: Job) -> None:
        job.status, job.want = "queued", "run"
        self._changed.set()

    def adapter_bytes(self, job: Job, name: str) -> bytes:
        manifest = job.finishes[-1].adapter
        assert manifest is not None
        return self.objects[f"adapters/{adapter_id_of(manifest)}/{name}"]

    # What agents do.

    async def _claim(self, request: web.Request) -> web.StreamResponse:
        claim = ClaimRequest.model_validate_json(await request.read())
        fault = self._enter(request, "claim")
        if fault is not None and fault != "answer_lost":
            return self._broken(request, fault)
        deadline = time.monotonic() + claim.wait_seconds
        while (job := self._next(claim)) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return web.Response(status=204)
            self._changed.clear()
            try:
                async with asyncio.timeout(min(left, 0.05)):
                    await self._changed.wait()
            except TimeoutError:
                continue
        lease = self._grant(request, job)
        if fault:
            return self._broken(request, fault)
        return web.json_response(text=lease.model_dump_json())

    def _next(self, claim: ClaimRequest) -> Job | None:
        now = time.monotonic()
        for job in self.jobs.values():
            if job.status == "running" and job.lease_until < now:
                job.status = "queued"
            if job.status == "queued" and job.spec.base_fingerprint == claim.base_fingerprint:
                return job
        return None

    def _grant(self, request: web.Request, job: Job) -> Lease:
        job.status, job.epoch = "running", job.epoch + 1
        job.claimed_at = time.monotonic()
        job.lease_until = job.claimed_at + self.ttl
        body = self.objects[job.training_file]
        file = FileRef(
            url=f"{self.url}/objects/{job.training_file}", sha256=hashlib.sha256(body).hexdigest(), size=len(body)
        )
        checkpoint = None
        if job.checkpoint:
            prefix = f"{self.url}/objects/{_folder(job.checkpoint)}"
            urls = {stored.path: f"{prefix}/{stored.path}" for stored in job.checkpoint.files}
            checkpoint = CheckpointRef(manifest=job.checkpoint, urls=urls)
        start = None
        if job.start_adapter:
            prefix = f"{self.url}/objects/adapters/{adapter_id_of(job.start_adapter)}"
            urls = {stored.path: f"{prefix}/{stored.path}" for stored in job.start_adapter.files}
            start = AdapterRef(manifest=job.start_adapter, urls=urls)
        return Lease(
            spec=job.spec,
            epoch=job.epoch,
            ttl_seconds=self.ttl,
            renew_seconds=self.renew_seconds,
            training_file=file,
            validation_file=None,
            checkpoint=checkpoint,
            start_adapter=start,
        )

    async def _leased(self, request: web.Request) -> web.StreamResponse:
        verb = request.match_info["verb"]
        raw = await request.read()
        fault = self._enter(request, verb)
        if fault in ("503", "drop"):
            return self._broken(request, fault)
        job = self.jobs[request.match_info["job"]]
        answer = {
            "renew": self._renew,
            "report": self._report,
            "uploads": self._uploads,
            "checkpoints": self._checkpoint,
            "checkpoint-models": self._checkpoint_model,
            "finish": self._finish,
        }[verb](job, raw)
        if fault == "answer_lost":
            return self._broken(request, fault)
        if answer is None:
            error = {"message": "lost", "type": "invalid_request_error", "param": None, "code": "lease_lost"}
            return web.json_response({"error": error}, status=409)
        return web.json_response(text=answer.model_dump_json())

    def _renew(self, job: Job, raw: bytes) -> Control | None:
        if not self._holds(job, RenewRequest.model_validate_json(raw).epoch):
            return None
        job.lease_until = time.monotonic() + self.ttl
        return self._control(job)

    def _report(self, job: Job, raw: bytes) -> Control | None:
        report = Report.model_validate_json(raw)
        if not self._holds(job, report.epoch):
            return None
        job.reports.append(report)
        job.events.update({event.id: event for event in report.events})
        return self._control(job)

    def _uploads(self, job: Job, raw: bytes) -> UploadTargets | None:
        request = UploadRequest.model_validate_json(raw)
        if not self._holds(job, request.epoch):
            return None
        manifest = request.checkpoint or request.adapter
        assert manifest is not None
        names = [*(file.path for file in manifest.files), MANIFEST]
        return UploadTargets(urls={name: f"{self.url}/objects/{_folder(manifest)}/{name}" for name in names})

    def _checkpoint(self, job: Job, raw: bytes) -> Control | None:
        done = CheckpointDone.model_validate_json(raw)
        if not self._holds(job, done.epoch):
            return None
        self._check_stored(done.manifest)
        job.checkpoint = done.manifest
        if done.manifest not in job.checkpoints:
            job.checkpoints.append(done.manifest)
        return self._control(job)

    def _checkpoint_model(self, job: Job, raw: bytes) -> Control | None:
        model = CheckpointModel.model_validate_json(raw)
        if not self._holds(job, model.epoch):
            return None
        self._check_stored(model.adapter)
        if model not in job.models:
            job.models.append(model)
        return self._control(job)

    def _finish(self, job: Job, raw: bytes) -> Finished | None:
        finish = Finish.model_validate_json(raw)
        done = Finished(status=STATUS_AFTER.get(finish.outcome, finish.outcome), fine_tuned_model=None)
        if job.finishes and job.finishes[-1].epoch == finish.epoch:
            return done if job.finishes[-1].outcome == finish.outcome else None
        if not self._holds(job, finish.epoch):
            return None
        if finish.adapter:
            self._check_stored(finish.adapter)
        job.finishes.append(finish)
        job.status = done.status
        job.events.update({event.id: event for event in finish.events})
        self._changed.set()
        return done

    def _holds(self, job: Job, epoch: int) -> bool:
        return job.status == "running" and job.epoch == epoch and job.lease_until > time.monotonic()

    def _control(self, job: Job) -> Control:
        return Control(want=job.want, ttl_seconds=self.ttl)

    def _check_stored(self, manifest: CheckpointManifest | AdapterManifest) -> None:
        """What is registered must be there, whole, with the manifest written after everything else."""
        folder = _folder(manifest)
        for file in manifest.files:
            body = self.objects[f"{folder}/{file.path}"]
            assert (len(body), hashlib.sha256(body).hexdigest()) == (file.size, file.sha256)
        assert self.objects[f"{folder}/{MANIFEST}"] == canonical_json(manifest)
        order = [key for key in self.puts if key.startswith(f"{folder}/")]
        assert order[-1] == f"{folder}/{MANIFEST}"


def _folder(manifest: CheckpointManifest | AdapterManifest) -> str:
    if isinstance(manifest, CheckpointManifest):
        return f"checkpoints/{manifest.job_id}/e{manifest.epoch}/step-{manifest.step}"
    return f"adapters/{adapter_id_of(manifest)}"
