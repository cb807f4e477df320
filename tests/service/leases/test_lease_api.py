"""The lease protocol over HTTP, as the trainer's agent speaks it, from claim to served model."""

import itertools
import urllib.request
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from service.contracts.manifest import MANIFEST, canonical_json
from service.contracts.worker import Lease, UploadTargets
from tests.service.conftest import Service
from tests.service.stage import Stage, adapter_files, adapter_manifest

CLAIM: dict[str, Any] = {"worker": "w", "base_model": "weft-tiny", "base_fingerprint": "f" * 64}


@pytest.fixture(scope="module")
def behind(service: Service) -> Stage:
    return Stage(service.resources, itertools.count())


@pytest.fixture(scope="module")
def worker(service: Service) -> Iterator[httpx2.Client]:
    headers = {"authorization": f"Bearer {service.settings.worker_token.get_secret_value()}"}
    with httpx2.Client(base_url=f"{service.url}/internal", headers=headers, timeout=30) as client:
        yield client


def test_one_job_from_claim_to_model(service: Service, behind: Stage, worker: httpx2.Client) -> None:
    project = service.call(behind.project())
    client = service.client(service.call(behind.key(project)))
    assert worker.post("/leases", json=CLAIM).status_code == 204
    job = service.call(behind.job(project))
    lease = Lease.model_validate_json(worker.post("/leases", json={**CLAIM, "wait_seconds": 5}).content)
    assert lease.spec.job_id == job

    event = {"id": "ftevent-1", "type": "metrics", "message": "Step 1", "data": {"step": 1, "train_loss": 0.5}}
    progress = {"phase": "training", "step": 1, "total_steps": 2, "trained_tokens": 10, "events": [event]}
    control = worker.post(f"/leases/{job}/report", json={"epoch": 1, **progress})
    assert control.json() == {"want": "run", "ttl_seconds": service.settings.lease_ttl_seconds}
    assert worker.post(f"/leases/{job}/renew", json={"epoch": 1}).json() == control.json()
    assert client.fine_tuning.jobs.list_events(job).data[0].data == {"step": 1, "train_loss": 0.5}
    assert client.fine_tuning.jobs.retrieve(job).to_dict()["phase"] == "training"

    files = adapter_files(lease.spec, b"w")
    manifest = adapter_manifest(lease.spec, 2, files)
    wanted = {"epoch": 1, "kind": "adapter", "adapter": manifest.model_dump(mode="json")}
    targets = UploadTargets.model_validate_json(worker.post(f"/leases/{job}/uploads", json=wanted).content)
    for name, body in {**files, MANIFEST: canonical_json(manifest)}.items():
        with urllib.request.urlopen(urllib.request.Request(targets.urls[name], body, method="PUT"), timeout=10):
            pass
    model = {"epoch": 1, "adapter": wanted["adapter"], "metrics": {"step": 2, "full_valid_mean_kl": 0.25}}
    assert worker.post(f"/leases/{job}/checkpoint-models", json=model).json() == control.json()
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job).data
    assert (checkpoint.step_number, checkpoint.metrics.to_dict()["full_valid_mean_kl"]) == (2, 0.25)
    lost = worker.post(f"/leases/{job}/checkpoint-models", json={**model, "epoch": 2})
    assert (lost.status_code, lost.json()["error"]["code"]) == (409, "lease_lost")
    end = {"epoch": 1, "outcome": "succeeded", "trained_tokens": 20, "step": 2, "adapter": wanted["adapter"]}
    finished = worker.post(f"/leases/{job}/finish", json=end)
    assert finished.json()["status"] == "succeeded"
    assert worker.post(f"/leases/{job}/finish", json=end).json() == finished.json()
    assert client.fine_tuning.jobs.retrieve(job).fine_tuned_model == finished.json()["fine_tuned_model"]


def test_a_lost_lease_is_a_409_that_says_so(service: Service, behind: Stage, worker: httpx2.Client) -> None:
    job = service.call(behind.job(service.call(behind.project())))
    answer = worker.post(f"/leases/{job}/renew", json={"epoch": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "lease_lost")
    assert worker.post("/leases/nothing/renew", json={"epoch": 1}).json() == answer.json()


def test_the_applications_own_reaper_takes_jobs_back(service: Service, behind: Stage, worker: httpx2.Client) -> None:
    worker.post("/leases", json={**CLAIM, "wait_seconds": 5}).raise_for_status()
    again = worker.post("/leases", json={**CLAIM, "wait_seconds": 20})
    assert again.status_code == 200
    assert again.json()["epoch"] == 2


@pytest.mark.parametrize("token", [None, "Bearer x", "Basic x", "Bearer"])
def test_without_the_workers_token_nothing_opens(service: Service, token: str | None) -> None:
    headers = {"authorization": token} if token else {}
    for path in ("", "/x/renew", "/x/report", "/x/uploads", "/x/checkpoints", "/x/checkpoint-models", "/x/finish"):
        assert httpx2.post(f"{service.url}/internal/leases{path}", headers=headers, json={}).status_code == 401
