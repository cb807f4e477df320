"""Estimates and dry runs: everything is checked, nothing is made, and numbers come from what was seen before."""

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from service.jobs import pace
from service.settings import ServiceSettings
from tests.service.conftest import Service
from tests.service.stage import Stage


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    return service_settings.model_copy(update={"training_price_per_million_tokens": {"weft-tiny": 3.0}})


@pytest.fixture(scope="module")
def project(service: Service, stage: Stage) -> Any:
    return service.call(stage.project())


@pytest.fixture(scope="module")
def client(service: Service, stage: Stage, project: Any) -> openai.OpenAI:
    return service.client(service.call(stage.key(project)))


@pytest.fixture(scope="module")
def file(service: Service, stage: Stage, project: Any) -> str:
    return service.call(stage.file(project, examples=20))


@pytest.fixture(scope="module")
def raw(service: Service, client: openai.OpenAI) -> Iterator[httpx2.Client]:
    headers = {"authorization": f"Bearer {client.api_key}"}
    with httpx2.Client(base_url=f"{service.url}/v1/fine_tuning", headers=headers, timeout=20) as made:
        yield made


def test_without_past_jobs_the_unknown_is_null_and_said(
    service: Service, raw: httpx2.Client, client: openai.OpenAI, file: str
) -> None:
    body = {"model": "weft-tiny", "training_file": file, "hyperparameters": {"n_epochs": 2, "batch_size": 8}}
    given = raw.post("/estimates", json=body).json()
    size = client.files.retrieve(file).bytes
    assert given["object"] == "fine_tuning.estimate"
    assert given["steps"] == 6
    assert given["trained_tokens"] == pytest.approx(size * 2 / 4, abs=1)
    assert given["tokens"] >= given["trained_tokens"]
    assert given["cost"] == {"amount": pytest.approx(given["trained_tokens"] * 3 / 1e6), "currency": "usd"}
    assert given["seconds"] is None
    assert given["adapter_memory_bytes"] > 0
    assert given["method"]["supervised"]["hyperparameters"]["n_epochs"] == 2
    assert any("guessed" in each for each in given["warnings"])
    dry = client.fine_tuning.jobs.create(**body, extra_body={"dry_run": True})  # type: ignore[arg-type]
    assert dry.to_dict() == given
    assert list(client.fine_tuning.jobs.list()) == []


def test_with_past_jobs_tokens_and_seconds_follow_from_them(
    service: Service, stage: Stage, raw: httpx2.Client, client: openai.OpenAI, project: Any, file: str
) -> None:
    size = client.files.retrieve(file).bytes
    for seconds in (10, 20, 60):
        body: Any = {"n_epochs": 1}
        job = client.fine_tuning.jobs.create(model="weft-tiny", training_file=file, hyperparameters=body)
        lease = service.call(stage.claimed())
        assert lease.spec.job_id == job.id
        earlier = "update jobs set leased_at = now() - make_interval(secs => :s) where id = :job returning id"
        service.call(stage.rows(earlier, s=seconds, job=job.id))
        service.call(stage.succeed(lease, tokens=100))

    async def learn() -> None:
        async with service.resources.database.control() as session:
            await pace.learn(session, service.resources)

    service.call(learn())
    body = {"model": "weft-tiny", "training_file": file, "hyperparameters": {"n_epochs": 3}}
    given = raw.post("/estimates", json=body).json()
    assert given["trained_tokens"] == 300
    assert given["tokens"] >= size * 3 // 4
    assert given["seconds"]["median"] == pytest.approx(60, rel=0.1)
    assert given["seconds"]["low"] < given["seconds"]["median"] < given["seconds"]["high"]
    assert not any("guessed" in each for each in given["warnings"])


@pytest.mark.parametrize("path", ["/estimates", "/jobs"])
@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "gpt-4o"}, 404, "model"),
        ({"training_file": "file-x"}, 400, "training_file"),
        ({"hyperparameters": {"n_epochs": 51}}, 400, "hyperparameters.n_epochs"),
        ({"method": {"type": "dpo"}}, 400, "training_file"),
        ({"dry_run": "yes"}, 400, "dry_run"),
    ],
)
def test_an_estimate_refuses_what_creating_refuses(
    raw: httpx2.Client, file: str, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    answer = raw.post(path, json={"model": "weft-tiny", "training_file": file, "dry_run": True, **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_many_epochs_and_few_examples_are_warned_of(raw: httpx2.Client, file: str) -> None:
    body = {"model": "weft-tiny", "training_file": file, "hyperparameters": {"n_epochs": 40}}
    warnings = " ".join(raw.post("/estimates", json=body).json()["warnings"])
    assert "by heart" in warnings
    assert "20 examples are few" in warnings
