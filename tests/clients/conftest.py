"""A real service for the SDK, a project in it, and a stand-in for workers that finishes jobs at once."""

import base64
import hashlib
import hmac
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.contracts.ids import FileId, JobId
from service.contracts.worker import Event, Lease
from service.settings import ServiceSettings
from tests.service.conftest import Service, admin, make_project, service
from tests.service.stage import Stage
from tests.service.transfers import conftest as transfers
from weft import Weft

__all__ = ["admin", "make_project", "service"]

EXAMPLES = 12
LAST_STEP = 100
"""Of which the stage's adapters are."""


def examples(count: int = EXAMPLES) -> bytes:
    lines = (
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"How much is {number:03} plus one?"},
                    {"role": "assistant", "content": f"It is {number + 1:03}."},
                ]
            }
        ).encode()
        for number in range(count)
    )
    return b"\n".join(lines) + b"\n"


@dataclass
class Tenant:
    """A project: its id, its key, a client with that key."""

    project_id: str
    key: str
    client: Weft


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    """On a busy machine no lease may run out between two steps of a test."""
    return service_settings.model_copy(update={"lease_ttl_seconds": 600.0})


@pytest.fixture(scope="module")
def tenant(service: Service, make_project: Callable[[str], tuple[str, str]]) -> Iterator[Tenant]:
    project, key = make_project("sdk")
    with Weft(api_key=key, base_url=f"{service.url}/v1", max_retries=0, timeout=30) as client:
        yield Tenant(project, key, client)


@pytest.fixture(scope="module")
def administrator(service: Service) -> Iterator[Weft]:
    key = service.settings.admin_key.get_secret_value()
    with Weft(admin_api_key=key, api_key="none", base_url=f"{service.url}/v1", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def stage(service: Service) -> Stage:
    return Stage(service.resources, itertools.count())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a good and a bad training file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_bytes(examples())
    good = examples(1)
    (tmp_path / "broken.jsonl").write_bytes(good + b'{"messages":[{"role":"user","content":"Hi"}]}\n')
    return tmp_path


def finish(service: Service, stage: Stage, lease: Lease) -> None:
    """A worker's report of two steps, with a validation file one of the model that is left, and the end."""
    told: dict[int, dict[str, float]] = {1: {"train_loss": 1.0}, 2: {"train_loss": 0.5}}
    if lease.validation_file is not None:
        told[LAST_STEP] = {"full_valid_loss": 0.5}
    for step, measured in told.items():
        data = {"step": step, "total_steps": 2, **measured}
        number = hashlib.sha256(f"{lease.spec.job_id}{step}".encode()).hexdigest()[:24]
        event = Event(id=f"ftevent-{number}", type="metrics", message=f"Step {step}/2", data=data)
        service.call(stage.report(lease, step=step, events=(event,)))
    service.call(stage.succeed(lease))


@pytest.fixture
def worker(service: Service, stage: Stage) -> Iterator[None]:
    """Finishes every job that is queued."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            lease = service.call(stage.claim(wait_seconds=0.3))
            if lease is not None:
                finish(service, stage, lease)

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    yield
    stop.set()
    thread.join(10)


SECRET = "whsec_" + base64.b64encode(b"0" * 24).decode()


@dataclass
class Received:
    """A request as an endpoint gets it, signed with SECRET."""

    body: bytes
    headers: dict[str, str]

    @classmethod
    def of(cls, kind: str, data: dict[str, Any]) -> "Received":
        event = {"id": "evt_1", "object": "event", "created_at": 1, "type": kind, "data": data}
        body, moment = json.dumps(event).encode(), str(int(time.time()))
        digest = hmac.new(b"0" * 24, f"evt_1.{moment}.{body.decode()}".encode(), hashlib.sha256).digest()
        signature = "v1," + base64.b64encode(digest).decode()
        return cls(body, {"webhook-id": "evt_1", "webhook-timestamp": moment, "webhook-signature": signature})


@dataclass
class Carrier:
    """Takes imports as a trainer's agent does, and looks at nothing: each becomes a version with weights of its own."""

    worker: transfers.Worker
    refusing: bool = False
    idle: bool = False
    read: list[dict[str, bytes]] = field(default_factory=list)
    """The files of each import, as the service gave them."""

    def carry(self) -> None:
        base = self.worker.service.settings.base_models[0]
        asked = {"worker": "carrier", "base_model": base.name, "base_fingerprint": base.fingerprint}
        answer = self.worker.http.post("/internal/transfers/lease", json=asked)
        if answer.status_code != 200:
            return
        lease = answer.json()
        files = {name: transfers.fetched(file["url"]) for name, file in lease["work"]["files"].items()}
        self.read.append(files)
        if self.refusing:
            failure = {"code": "adapter_invalid", "message": "It is no adapter."}
            self.worker.finish(lease, "failed", failure=failure)
            return
        weights = f"weights {lease['id']}".encode()
        manifest = self.worker.manifest(lease, weights)
        self.worker.store(lease, manifest, weights)
        self.worker.finish(lease, "succeeded", adapter=manifest.model_dump(mode="json"), changes=[])


@pytest.fixture
def carrier(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Carrier]:
    monkeypatch.setattr("weft.resources.transfers.POLL_SECONDS", 0.05)
    headers = {"authorization": f"Bearer {service.settings.worker_token.get_secret_value()}"}
    stop = threading.Event()
    with httpx2.Client(base_url=service.url, headers=headers, timeout=30) as http:
        made = Carrier(transfers.Worker(service, http))

        def work() -> None:
            while not stop.wait(0.05):
                if not made.idle:
                    made.carry()

        thread = threading.Thread(target=work, name="carrier")
        thread.start()
        yield made
        stop.set()
        thread.join(10)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder as PEFT saves an adapter."""
    folder = tmp_path / "trained-elsewhere"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(transfers.CONFIG)
    (folder / "adapter_model.safetensors").write_bytes(transfers.WEIGHTS)
    return folder


@pytest.fixture
def queued(service: Service, stage: Stage, tenant: Tenant) -> JobId:
    """A queued job that nobody works at."""
    body = {"model": "weft-tiny", "training_file": uploaded(tenant)}
    return JobId(tenant.client.fine_tuning.jobs.create(**body).id)


def uploaded(tenant: Tenant) -> FileId:
    return FileId(tenant.client.files.create(file=("train.jsonl", examples()), purpose="fine-tune").id)
