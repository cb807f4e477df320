"""Evaluations as the public API takes and shows them, every grader of it, and what is refused in advance."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
from aiohttp import web

from tests.conftest import wait_until
from tests.service.gateway.conftest import BASE
from tests.service.gateway.registered import NAME
from tests.service.promotions.conftest import RIGHT, WRONG, Owner, Plan, says

Owners = Callable[..., Owner]
SAMPLE, REFERENCE = "{{sample.output_text}}", "{{item.reference}}"
EXACT = {"type": "exact_match"}


def evaluated(own: Owner, grader: dict[str, Any], version: int = 1, file: str | None = None) -> dict[str, Any]:
    made = own.api("POST", f"/{NAME}/evaluations", version=version, file_id=file or own.held_out(), grader=grader)
    assert (made["status"], made["promotion"], made["model"]) == ("queued", None, f"{NAME}@v{version}")

    def ended() -> bool:
        return found()["status"] in ("succeeded", "failed")

    def found() -> dict[str, Any]:
        return own.api("GET", f"/{NAME}/evaluations/{made['id']}")

    wait_until(ended, 60, what="the evaluation ended")
    return found()


def check(operation: str, reference: str) -> dict[str, Any]:
    return {"type": "string_check", "name": "c", "input": SAMPLE, "reference": reference, "operation": operation}


def test_answers_are_graded_one_by_one(owner: Owners, plan: Plan) -> None:
    own = owner()
    found = evaluated(own, check("eq", REFERENCE))
    assert (found["status"], found["score"], found["results"]["examples"]) == ("succeeded", 1.0, 6)
    asked = plan.replica.bodies[-1]
    assert (asked["temperature"], asked["messages"]) == (0, [{"role": "user", "content": "2+2"}])


def test_a_model_gives_the_score(owner: Owners, plan: Plan) -> None:
    own = owner()
    plan.texts |= {own.adapters[0]: WRONG, BASE: '{"result": 7}'}
    grader = {
        "type": "score_model",
        "name": "judge",
        "model": BASE,
        "input": [{"role": "user", "content": f"Is {SAMPLE} what {REFERENCE} is?"}],
        "range": [0, 10],
    }
    found = evaluated(own, grader)
    assert (found["score"], found["results"]["problems"]) == (7.0, 0)
    asked = next(body for body in plan.replica.bodies if body["model"] == BASE)
    assert asked["messages"][0]["content"] == "Is 5 what 4 is?"
    assert own.booked() == [(f"{NAME}@v1", 6), (BASE, 6)]


def test_versions_and_their_provenance_tell_how_they_did(owner: Owners, plan: Plan) -> None:
    own = owner(2)
    file = own.held_out()
    plan.texts[own.adapters[1]] = WRONG
    first, second = evaluated(own, check("eq", REFERENCE), file=file), evaluated(own, EXACT, file=file)
    evaluated(own, EXACT, version=2, file=file)
    evaluated(own, check("eq", "{{item.city}}"), version=2, file=file)
    scores = own.api("GET", f"/{NAME}/versions/1")["scores"]
    assert [(each["evaluation_id"], each["grader"], each["score"]) for each in scores] == [
        (second["id"], "exact_match", 1.0), (first["id"], "c", 1.0),
    ]  # fmt: skip
    assert {(each["alias"], each["promoted"]) for each in scores} == {(None, None)}
    by_version = {each["version"]: each["scores"] for each in own.api("GET", f"/{NAME}/versions")["data"]}
    assert by_version[1] == scores
    assert [each["score"] for each in by_version[2]] == [0.0], "what failed is no score"
    newest, oldest = own.api("GET", f"/{NAME}/versions/1/provenance")["evaluations"]
    assert (newest["id"], newest["grader"], newest["score"]) == (second["id"], EXACT, 1.0)
    assert oldest["grader"] == first["grader"]
    (hashed,) = own.service.call(own.stage.rows("select sha256 from files where id = :id", id=file))
    assert (newest["file_id"], newest["file_sha256"]) == (file, hashed[0])


def test_a_loss_that_no_job_recorded_is_measured(owner: Owners, plan: Plan) -> None:
    own = owner()

    async def told(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        # 6 tokens of prompt; then the two of the answer, and the line break that the template ends a turn with.
        whole = json.loads(says(RIGHT, body))
        if "prompt_logprobs" in body:
            assert body["add_generation_prompt"] is False
            assert body["messages"][-1] == {"role": "assistant", "content": RIGHT}
            known = [None] + [{str(token): {"logprob": -9.0, "rank": 1}} for token in range(5)]
            said = enumerate([(-0.5, "4"), (-1.5, "<|end|>"), (-7.0, "\n")])
            answered = [{str(token): {"logprob": each, "decoded_token": text}} for token, (each, text) in said]
            whole["prompt_logprobs"] = [*known, *answered]
        return web.json_response(whole)

    plan.replica.script = told
    found = evaluated(own, {"type": "loss"})
    assert (found["status"], found["score"], found["results"]["examples"]) == ("succeeded", 1.0, 6)
    assert own.booked() == [(f"{NAME}@v1", 12)]


def test_what_an_example_lacks_and_what_is_gone_ends_an_evaluation(owner: Owners, plan: Plan) -> None:
    own = owner(2)
    found = evaluated(own, check("eq", "{{item.city}}"))
    assert (found["status"], found["score"]) == ("failed", None)
    assert found["error"]["code"] == "invalid_grader"
    assert "'item.city'" in found["error"]["message"]


def test_graders_that_there_are_not_are_refused_by_name(owner: Owners) -> None:
    own = owner()
    file = own.held_out()
    similar = {"type": "text_similarity", "input": "a", "reference": "b"}
    for grader, said in (
        ({**similar, "evaluation_metric": "cosine"}, "needs embeddings"),
        ({**similar, "evaluation_metric": "meteor"}, "needs a dictionary of synonyms"),
        ({**similar, "evaluation_metric": "bleurt"}, "'fuzzy_match', 'bleu', 'gleu', 'rouge_1'"),
        ({**check("eq", "b"), "input": "{{sample.text}}"}, "names nothing"),
        (check("regex", "b"), "operation"),
        ({"type": "python", "source": "def grade(): ..."}, "string_check"),
        ({"type": "score_model", "model": "m", "input": [], "range": [1, 0]}, "input"),
    ):
        refused = own.refused("POST", f"/{NAME}/evaluations", version=1, file_id=file, grader=grader)
        assert refused.status_code == 400
        assert said in refused.json()["error"]["message"]


def test_what_an_evaluation_needs_is_looked_at_when_it_is_asked_for(owner: Owners) -> None:
    own, other = owner(), owner()
    judge = {"type": "score_model", "model": "ft:nobody", "input": [{"role": "user", "content": "?"}]}
    for changes, status, code in (
        ({"version": 9}, 404, "version_not_found"),
        ({"file_id": other.held_out()}, 400, "file_not_found"),
        ({"file_id": own.held_out(purpose="batch")}, 400, "invalid_file_purpose"),
        ({"grader": judge}, 404, "model_not_found"),
    ):
        body = {"version": 1, "file_id": own.held_out(), "grader": EXACT, **changes}
        refused = own.refused("POST", f"/{NAME}/evaluations", **body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    made = own.api("POST", f"/{NAME}/evaluations", version=1, file_id=own.held_out(), grader=EXACT)
    foreign = other.refused("GET", f"/{NAME}/evaluations/{made['id']}")
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (404, "evaluation_not_found")
    assert own.api("GET", f"/{NAME}/evaluations?limit=1")["first_id"] == made["id"]


def test_a_promotion_that_could_only_fail_is_refused_before_the_training(owner: Owners) -> None:
    own = owner()
    training, validation = own.held_out(examples=20), own.held_out()
    gate = {"alias": "prod", "adapter": NAME}
    for changes, files, param in (
        ({"alias": "v7"}, {"validation_file": validation}, "alias"),
        ({"adapter": None}, {"validation_file": validation}, "adapter"),
        ({"adapter": "other"}, {"validation_file": validation, "adapter": NAME}, "adapter"),
        ({"min_score": 1}, {"validation_file": validation}, "min_score"),
        ({"evaluation": {"file_id": training}}, {}, "evaluation.file_id"),
        ({"evaluation": {"file_id": "file-0"}}, {}, "evaluation.file_id"),
        ({"evaluation": {"grader": EXACT}}, {}, "evaluation.file_id"),
    ):
        body = {"model": BASE, "training_file": training, "on_success": gate | changes, **files}
        refused = httpx2.post(f"{own.service.url}/v1/fine_tuning/jobs", json=body, headers=own.headers, timeout=20)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, f"on_success.{param}")


def test_a_job_shows_what_its_success_leads_to(owner: Owners) -> None:
    own = owner()
    gate = {"adapter": NAME, "alias": "prod", "evaluation": {"grader": EXACT}, "min_score": 0.5}
    body = {"model": BASE, "training_file": own.held_out(20), "validation_file": own.held_out(), "on_success": gate}
    made = httpx2.post(f"{own.service.url}/v1/fine_tuning/jobs", json=body, headers=own.headers, timeout=20).json()
    assert made["adapter"] == NAME
    shown = made["on_success"]
    assert (shown["alias"], shown["min_score"], shown["must_beat_current"]) == ("prod", 0.5, True)
    assert shown["evaluation"]["grader"] == EXACT
