"""A real service for the SDK, a project in it, and a stand-in for workers that finishes jobs at once."""

import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.contracts.ids import FileId, JobId
from service.contracts.worker import Event, Lease
from service.settings import ServiceSettings
from tests.service.conftest import Service, admin, make_project, service
from tests.service.stage import Stage
from weft import Weft

__all__ = ["admin", "make_project", "service"]

EXAMPLES = 12


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
    """A worker's report of two steps, and the end."""
    for step in (1, 2):
        data = {"step": step, "total_steps": 2, "train_loss": 1 / step}
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


@pytest.fixture
def queued(service: Service, stage: Stage, tenant: Tenant) -> JobId:
    """A queued job that nobody works at."""
    body = {"model": "weft-tiny", "training_file": uploaded(tenant)}
    return JobId(tenant.client.fine_tuning.jobs.create(**body).id)


def uploaded(tenant: Tenant) -> FileId:
    return FileId(tenant.client.files.create(file=("train.jsonl", examples()), purpose="fine-tune").id)
