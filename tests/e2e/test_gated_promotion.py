"""A job's version takes an alias over where it proves better on held-out examples, asked of vLLM as anybody would."""

import random
import time
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from openai import OpenAI

from deploy.local.tiny_base.tasks import examples
from tests.e2e.stack import Stack
from tests.e2e.training import as_jsonl, wait_for_job

pytestmark = pytest.mark.stack

NAME = "gated"
LINES = examples("support-desk", 96, seed=3)
HELD_OUT = examples("support-desk", 16, seed=9)
TOLERANCE = {"rel": 0.01, "abs": 0.005}
"""Of the mean loss of a token, in nats: what bfloat16 leaves of one over five layers, against the trainer's own."""


@dataclass
class Owner:
    client: OpenAI
    http: httpx.Client

    def ask(self, method: str, path: str, **options: Any) -> Any:
        answer = self.http.request(method, path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def file(self, lines: list[dict[str, Any]]) -> str:
        return self.client.files.create(file=as_jsonl(lines), purpose="fine-tune").id

    def evaluated(self, evaluation: str | None = None) -> dict[str, Any]:
        """That evaluation, or the newest one, once it has ended."""
        path = f"/adapters/{NAME}/evaluations"
        evaluation = evaluation or self.ask("GET", path)["data"][0]["id"]
        deadline = time.monotonic() + 60
        while (found := self.ask("GET", f"{path}/{evaluation}"))["finished_at"] is None:
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        assert found["status"] == "succeeded", found["error"]
        return found


@pytest.fixture(scope="module")
def owner(stack: Stack) -> Owner:
    key = stack.project("gated-promotion")
    http = httpx.Client(base_url=stack.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=120)
    return Owner(OpenAI(base_url=stack.base_url, api_key=key), http)


def test_what_is_better_takes_the_alias_over_and_nothing_else_does(owner: Owner) -> None:
    training, held_out = owner.file(LINES), owner.file(HELD_OUT)
    # The same examples as another file, so that no job has measured its loss.
    measured = owner.file(random.Random(1).sample(HELD_OUT, len(HELD_OUT)))

    def trained(model: str, rate: float, epochs: int, **evaluation: Any) -> dict[str, Any]:
        """What became of the evaluation of a job's version."""
        settings = {"n_epochs": epochs, "batch_size": 8, "learning_rate": rate}
        body = {
            "model": model,
            "training_file": training,
            "validation_file": held_out,
            "seed": 1,
            "method": {"type": "supervised", "supervised": {"hyperparameters": settings}},
            "adapter": NAME,
            "on_success": {"alias": "prod", "evaluation": evaluation},
        }
        wait_for_job(owner.client, owner.ask("POST", "/fine_tuning/jobs", json=body)["id"])
        return owner.evaluated()

    def job_loss(version: int) -> float:
        return owner.ask("GET", f"/adapters/{NAME}/versions/{version}")["evaluation"]["full_valid_loss"]

    exact = {"grader": {"type": "exact_match"}}
    first = trained("weft-tiny", 3e-3, 3, **exact)
    assert (first["promotion"]["promoted"], first["version"], first["current_version"]) == (True, 1, None)
    assert first["score"] > 0
    worse = trained("weft-tiny", 1e-6, 1, **exact)
    assert (worse["promotion"]["promoted"], worse["current_version"]) == (False, 1)
    assert worse["score"] < worse["current_score"] == first["score"]
    assert owner.ask("GET", f"/adapters/{NAME}")["aliases"]["prod"] == 1

    better = trained(f"{NAME}@prod", 1e-3, 2, file_id=measured)
    assert better["results"]["lines"], "it was measured, line by line"
    asked = {"version": 2, "file_id": measured, "grader": {"type": "loss"}}
    bad = owner.evaluated(owner.ask("POST", f"/adapters/{NAME}/evaluations", json=asked)["id"])
    found = [better["current_score"], bad["score"], better["score"]]
    told = [job_loss(version) for version in (1, 2, 3)]
    print(f"exact match of v1 and v2: {first['score']:.2f}, {worse['score']:.2f}")
    print("losses as measured of v1, v2 and v3:", *(f"{loss:.4f}" for loss in found))
    print("as the trainer told them:", *(f"{loss:.4f}" for loss in told))
    assert found == pytest.approx(told, **TOLERANCE)
    assert better["promotion"]["promoted"] is True
    assert owner.ask("GET", f"/adapters/{NAME}")["aliases"]["prod"] == 3
    answer = owner.client.chat.completions.create(model=f"{NAME}@prod", messages=HELD_OUT[0]["messages"][:1])  # type: ignore[arg-type]
    assert answer.model == f"{NAME}@v3"
