"""Jobs of OpenAI made again here: what is carried over, what is said to stay behind, what is refused."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from service.contracts.ids import ProjectId
from service.settings import ServiceSettings
from tests.service.conftest import Service
from tests.service.stage import Stage

# As OpenAI's API reference shows one, with values that our limits allow.
JOB: dict[str, Any] = {
    "object": "fine_tuning.job",
    "id": "ftjob-abc123",
    "model": "gpt-4o-mini-2024-07-18",
    "created_at": 1721764800,
    "fine_tuned_model": "ft:gpt-4o-mini-2024-07-18:acme:poems:9AbCdEfG",
    "organization_id": "org-123",
    "result_files": ["file-abc"],
    "status": "succeeded",
    "validation_file": "file-def",
    "training_file": "file-ghi",
    "hyperparameters": {"n_epochs": 4, "batch_size": 2, "learning_rate_multiplier": 1.8},
    "trained_tokens": 5768,
    "integrations": [{"type": "wandb", "wandb": {"project": "p", "entity": None, "run_id": "ftjob-abc123"}}],
    "seed": 683058546,
    "estimated_finish": 0,
    "error": {},
    "method": {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 4, "batch_size": 2, "learning_rate_multiplier": 1.8}},
    },
    "metadata": {"team": "a"},
    "user_provided_suffix": "poems",
    "usage_metrics": None,
    "shared_with_openai": False,
    "eval_id": None,
}


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    known = {"gpt-": "unknown-base", "gpt-4o": "weft-tiny", "gpt-4.1": "weft-tiny"}
    return service_settings.model_copy(update={"imported_base_models": known})


@pytest.fixture(scope="module")
def project(service: Service, stage: Stage) -> ProjectId:
    return service.call(stage.project())


@pytest.fixture(scope="module")
def raw(service: Service, stage: Stage, project: ProjectId) -> Iterator[httpx2.Client]:
    headers = {"authorization": f"Bearer {service.call(stage.key(project))}"}
    with httpx2.Client(base_url=f"{service.url}/v1/fine_tuning", headers=headers, timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def file(service: Service, stage: Stage, project: ProjectId) -> str:
    return service.call(stage.file(project))


@pytest.fixture(scope="module")
def pairs(service: Service, stage: Stage, project: ProjectId) -> str:
    return service.call(stage.file(project, example_format="preference"))


def imported(raw: httpx2.Client, file: str, changes: dict[str, Any], **fields: Any) -> httpx2.Response:
    return raw.post("/imports", json={"job": JOB | changes, "training_file": file, **fields})


def test_a_job_is_carried_over(raw: httpx2.Client, file: str) -> None:
    given = imported(raw, file, {}).json()
    job = given["job"]
    assert raw.get(f"/jobs/{job['id']}").json()["status"] == "queued"
    assert (job["model"], job["training_file"], job["seed"]) == ("weft-tiny", file, 683058546)
    assert job["hyperparameters"] == JOB["hyperparameters"]
    assert (job["user_provided_suffix"], job["metadata"]) == ("poems", {"team": "a"})
    assert job["integrations"][0]["wandb"]["run_id"] is None
    left = {each["field"] for each in given["not_carried_over"]}
    assert left == {"fine_tuned_model", "result_files", "validation_file"}


def test_a_preference_job_and_its_beta(raw: httpx2.Client, pairs: str) -> None:
    settings = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5, "beta": 0.2}
    method = {"type": "dpo", "dpo": {"hyperparameters": settings}}
    job = imported(raw, pairs, {"method": method, "hyperparameters": {}}).json()["job"]
    assert settings.items() <= job["method"]["dpo"]["hyperparameters"].items()


def test_older_objects_without_a_method_and_with_auto(raw: httpx2.Client, file: str) -> None:
    older = {key: JOB[key] for key in ("object", "model", "hyperparameters", "fine_tuned_model")}
    older["hyperparameters"] = {"n_epochs": "auto"}
    answer = raw.post("/imports", json={"job": older, "training_file": file})
    assert answer.json()["job"]["hyperparameters"]["n_epochs"] == 5
    assert answer.json()["job"]["user_provided_suffix"] == "poems"


def test_what_cannot_be_carried_over_is_said(raw: httpx2.Client, file: str) -> None:
    changes = {
        "model": "ft:gpt-4o-mini-2024-07-18:acme::9AbCdEfG",
        "user_provided_suffix": "x" * 65,
        "hyperparameters": JOB["hyperparameters"] | {"prompt_loss_weight": 0.1},
    }
    given = imported(raw, file, changes, validation_file=None).json()
    left = {each["field"] for each in given["not_carried_over"]}
    assert {"model", "suffix", "hyperparameters.prompt_loss_weight"} <= left
    assert (given["job"]["model"], given["job"]["user_provided_suffix"]) == ("weft-tiny", None)


def test_the_base_is_given_where_none_is_known(raw: httpx2.Client, file: str) -> None:
    refused = imported(raw, file, {"model": "davinci-002"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "missing_model")
    assert imported(raw, file, {"model": "davinci-002"}, model="weft-tiny").json()["job"]["model"] == "weft-tiny"
    assert imported(raw, file, {"model": "gpt-5"}).status_code == 404


@pytest.mark.parametrize(
    "changes",
    [
        {"object": "fine_tuning.job.event"},
        {"method": {"type": "reinforcement"}},
        {"hyperparameters": {}, "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 99}}}},
        {"metadata": {"a": 1}},
        {"seed": "x"},
        {"model": "ft:"},
        {"model": None},
        {"model": ["gpt-4o"]},
        {"integrations": [{"type": "wandb", "wandb": {}}]},
        {"integrations": [None]},
        {"method": {"type": ["supervised"]}},
    ],
)
def test_what_is_no_usable_job_is_refused(raw: httpx2.Client, file: str, changes: dict[str, Any]) -> None:
    before = len(raw.get("/jobs?limit=100").json()["data"])
    assert imported(raw, file, changes).status_code == 400
    assert len(raw.get("/jobs?limit=100").json()["data"]) == before


def test_odd_fields_do_no_harm(raw: httpx2.Client, file: str) -> None:
    odd: dict[str, Any] = {"hyperparameters": 7, "integrations": {}, "fine_tuned_model": 3, "user_provided_suffix": 5}
    given = imported(raw, file, odd)
    assert given.status_code == 200
