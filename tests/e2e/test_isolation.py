"""Another project's file, job and model: the same 404 as an unknown id, on every route that takes one."""

from typing import Any

import httpx
import pytest
from openai import OpenAI

from deploy.local.tiny_base.tasks import examples
from tests.e2e.stack import Stack
from tests.e2e.training import tune, wait_for_job

pytestmark = pytest.mark.stack

UNKNOWN = {
    "file": "file-000000000000000000000000",
    "job": "ftjob-000000000000000000000000",
    "model": "ft:weft-tiny:weft::00000000",
}
ROUTES: list[tuple[str, str, str, dict[str, Any] | None]] = [
    ("GET", "/files/{id}", "file", None),
    ("DELETE", "/files/{id}", "file", None),
    ("GET", "/files/{id}/content", "file", None),
    ("POST", "/fine_tuning/jobs", "file", {"model": "weft-tiny", "training_file": "{id}"}),
    ("GET", "/fine_tuning/jobs/{id}", "job", None),
    ("POST", "/fine_tuning/jobs/{id}/cancel", "job", None),
    ("POST", "/fine_tuning/jobs/{id}/pause", "job", None),
    ("POST", "/fine_tuning/jobs/{id}/resume", "job", None),
    ("GET", "/fine_tuning/jobs/{id}/events", "job", None),
    ("GET", "/fine_tuning/jobs/{id}/checkpoints", "job", None),
    ("GET", "/models/{id}", "model", None),
    ("DELETE", "/models/{id}", "model", None),
    ("POST", "/chat/completions", "model", {"model": "{id}", "messages": [{"role": "user", "content": "hi"}]}),
    ("POST", "/completions", "model", {"model": "{id}", "prompt": "hi"}),
    ("POST", "/fine_tuning/jobs", "model", {"model": "{id}", "training_file": UNKNOWN["file"]}),
]


@pytest.fixture(scope="module")
def owned(stack: Stack) -> dict[str, str]:
    client = OpenAI(base_url=stack.base_url, api_key=stack.project("iso-owner"))
    job = wait_for_job(client, tune(client, examples("support-desk", 12, seed=1), n_epochs=1).id)
    assert job.fine_tuned_model
    return {"file": job.training_file, "job": job.id, "model": job.fine_tuned_model}


@pytest.mark.parametrize(("method", "path", "kind", "body"), ROUTES)
def test_a_foreign_id_is_answered_like_an_unknown_one(
    stack: Stack, owned: dict[str, str], method: str, path: str, kind: str, body: dict[str, Any] | None
) -> None:
    stranger = {"Authorization": f"Bearer {stack.project('iso-stranger')}"}

    def ask(value: str) -> tuple[int, dict[str, Any]]:
        filled = {name: value if item == "{id}" else item for name, item in body.items()} if body else None
        answer = httpx.request(
            method, stack.base_url + path.replace("{id}", value), headers=stranger, json=filled, timeout=60
        )
        return answer.status_code, {"body": answer.text.replace(value, "{id}")}

    foreign, unknown = ask(owned[kind]), ask(UNKNOWN[kind])
    assert foreign == unknown
    assert foreign[0] == (400 if path == "/fine_tuning/jobs" and kind == "file" else 404)


def test_the_owner_still_has_everything(stack: Stack, owned: dict[str, str]) -> None:
    client = OpenAI(base_url=stack.base_url, api_key=stack.project("iso-owner"))
    assert client.files.retrieve(owned["file"]).id == owned["file"]
    assert client.fine_tuning.jobs.retrieve(owned["job"]).status == "succeeded"
    assert client.models.retrieve(owned["model"]).id == owned["model"]
