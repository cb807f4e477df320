"""A job's version takes an alias over where it proves better, and nowhere else."""

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web

from service.promotions.executor import work
from service.promotions.holding import Holding, Lost, claim
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.gateway.registered import NAME
from tests.service.promotions.conftest import RIGHT, WRONG, Owner, Plan
from tests.service.registry.events import hear, heard
from tests.service.stage import Stage

Owners = Callable[..., Owner]
EXACT = {"grader": {"type": "exact_match"}}


def test_a_version_that_beats_the_current_one_takes_its_alias_over(owner: Owners, plan: Plan) -> None:
    own = owner()
    own.point(1, "prod")
    plan.texts[own.adapters[0]] = WRONG
    job = own.succeeded(evaluation=EXACT)
    found = own.over()
    assert (found["status"], found["score"], found["current_version"], found["current_score"]) == (
        "succeeded", 1.0, 1, 0.0,
    )  # fmt: skip
    assert found["promotion"]["promoted"] is True
    assert found["promotion"]["reason"] is None
    assert [line["line"] for line in found["results"]["lines"]] == [1, 2, 3, 4, 5, 6]
    assert own.stands_for() == 2
    (change, _) = own.api("GET", f"/{NAME}/history?alias=prod")["data"]
    assert (change["action"], change["from_version"], change["to_version"]) == ("promote", 1, 2)
    assert found["id"] in change["reason"]
    assert own.told(job) == "v2 was promoted to 'prod': exact_match 1 against 0 of v1"
    (score,) = own.api("GET", f"/{NAME}/versions/2")["scores"]
    assert (score["evaluation_id"], score["alias"], score["promoted"]) == (found["id"], "prod", True)
    (record,) = own.api("GET", f"/{NAME}/versions/2/provenance")["evaluations"]
    assert (record["current_version"], record["current_score"], record["promoted"]) == (1, 0.0, True)
    assert own.booked() == [(f"{NAME}@v1", 6), (f"{NAME}@v2", 6)]
    assert own.counts(2, "prod") == (0, 0), "what an evaluation asks is not the version's traffic"


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        ({}, "Its score 1 does not beat the 1 of v1."),
        ({"min_score": 1.5, "must_beat_current": False}, "Its score 1 is below the 1.5 that it needs."),
    ],
)
def test_a_version_that_is_no_better_does_not(owner: Owners, gate: dict[str, Any], reason: str) -> None:
    own = owner()
    before = own.point(1, "prod")
    job = own.succeeded(evaluation=EXACT, **gate)
    found = own.over()
    assert (found["status"], found["promotion"]["promoted"], found["promotion"]["reason"]) == (
        "succeeded", False, reason,
    )  # fmt: skip
    assert own.api("GET", f"/{NAME}/aliases/prod") == before
    assert own.told(job) == f"v2 was not promoted to 'prod': {reason}"


def test_a_first_version_is_the_default_only_once_it_is_good_enough(service: Service, stage: Stage, plan: Plan) -> None:
    own = Owner.made(service, stage, versions=0)
    assert isinstance(own, Owner)
    bad = {"type": "string_check", "input": "{{sample.output_text}}", "reference": "5", "operation": "eq"}
    own.succeeded(alias="default", evaluation={"grader": bad}, min_score=0.5)
    assert own.over()["promotion"]["promoted"] is False
    assert own.stands_for("default") is None
    own.succeeded(alias="default", evaluation=EXACT, min_score=0.5)
    assert own.over()["promotion"]["promoted"] is True
    assert own.stands_for("default") == 2


def test_whoever_changed_the_alias_meanwhile_has_the_last_word(owner: Owners, plan: Plan) -> None:
    own = owner(2)
    own.point(1, "prod")
    plan.texts[own.adapters[0]] = WRONG
    plan.hold = threading.Event()
    job = own.succeeded(evaluation=EXACT)
    wait_until(lambda: len(plan.asked) > 0, what="the evaluation began")
    own.point(2, "prod", reason="by hand")
    plan.hold.set()
    found = own.over()
    assert (found["score"], found["promotion"]["promoted"]) == (1.0, False)
    assert "at revision 2 and not 1" in found["promotion"]["reason"]
    assert own.stands_for() == 2
    assert "was not promoted" in own.told(job)


SIMILAR = {
    "grader": {
        "type": "text_similarity",
        "input": "{{sample.output_text}}",
        "reference": "{{item.reference}}",
        "evaluation_metric": "fuzzy_match",
    }
}


def _raced(service: Service, stage: Stage, own: Owner, plan: Plan, texts: tuple[str, str]) -> None:
    """Two jobs end, and two processes evaluate their versions 2 and 3 at once, both against version 1, which is bad."""
    own.point(1, "prod")
    plan.texts[own.adapters[0]] = WRONG
    plan.hold = threading.Event()
    for text in texts:
        own.succeeded(evaluation=SIMILAR)
        asked = next(each for each in own.api("GET", f"/{NAME}/versions")["data"])["sha256"]
        plan.texts[asked] = text
    wait_until(lambda: len(plan.asked) > 0, what="the first is begun")
    # As another process would; the service itself works on one evaluation of a project at a time.
    row = service.call(claim(stage.resources, []))
    other = asyncio.run_coroutine_threadsafe(work(stage.resources, service.app.state.gateway, row), service.loop)
    wait_until(lambda: own.newest()["current_version"] == 1, what="the second is begun")
    plan.hold.set()
    other.result(60)
    states = [each["status"] for each in own.api("GET", f"/{NAME}/evaluations")["data"]]
    if "running" in states:
        wait_until(lambda: all(each["finished_at"] for each in own.api("GET", f"/{NAME}/evaluations")["data"]), 60)


@pytest.mark.parametrize(("texts", "best"), [(("4x", RIGHT), 3), ((RIGHT, "4x"), 2)])
def test_of_two_that_were_evaluated_at_once_the_better_one_stays(
    service: Service, stage: Stage, owner: Owners, plan: Plan, texts: tuple[str, str], best: int
) -> None:
    own = owner()
    _raced(service, stage, own, plan, texts)
    assert own.stands_for() == best
    found = {each["version"]: each for each in own.api("GET", f"/{NAME}/evaluations")["data"]}
    assert found[best]["promotion"]["promoted"] is True
    other = found[5 - best]["promotion"]
    history = own.api("GET", f"/{NAME}/history?alias=prod")["data"]
    assert other["promoted"] is (len(history) == 3)
    if not other["promoted"]:
        assert other["reason"] == f"Its score 0.6667 does not beat the 1 of v{best}."
    assert service.call(stage.rows("select max(rounds) from evaluations"))[0][0] == 2


def test_an_alias_that_changes_too_often_is_left_to_others(
    service: Service, stage: Stage, owner: Owners, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.promotions.deciding.MOST_ROUNDS", 1)
    own = owner()
    _raced(service, stage, own, plan, (RIGHT, RIGHT))
    outcomes = [each["promotion"] for each in own.api("GET", f"/{NAME}/evaluations")["data"]]
    assert sorted(each["promoted"] for each in outcomes) == [False, True]
    assert ["at revision 2 and not 1" in (each["reason"] or "") for each in outcomes].count(True) == 1


def test_the_losses_that_jobs_recorded_on_one_file_decide_without_a_request(owner: Owners, plan: Plan) -> None:
    own = owner(0)
    own.succeeded(loss=0.9)
    assert own.over()["promotion"]["promoted"] is True, "there was nothing to beat"
    own.succeeded(loss=0.8)
    better = own.over()
    assert (better["score"], better["current_score"], better["promotion"]["promoted"]) == (0.8, 0.9, True)
    own.succeeded(loss=0.85)
    worse = own.over()
    assert (worse["promotion"]["reason"], own.stands_for()) == ("Its loss 0.85 does not beat the 0.8 of v2.", 2)
    assert plan.asked == []


def test_a_holder_that_was_replaced_changes_nothing_and_all_is_done_once(
    service: Service, stage: Stage, owner: Owners, plan: Plan
) -> None:
    own = owner()
    own.point(1, "prod")
    plan.texts[own.adapters[0]] = WRONG
    plan.hold = threading.Event()
    job = own.succeeded(evaluation=EXACT)
    wait_until(lambda: len(plan.asked) > 0, what="the evaluation began")
    # As if its process had been silent for longer than it may: the next one, here by hand, takes it.
    service.call(stage.rows("update evaluations set held_until = now() - interval '1 s' returning id"))
    row = service.call(claim(stage.resources, []))
    assert row.epoch > 1
    plan.hold.set()
    row.epoch -= 1
    with pytest.raises(Lost):
        service.call(Holding(stage.resources, row).record([]))
    service.call(stage.rows("update evaluations set held_until = now() - interval '1 s' returning id"))
    assert own.over()["promotion"]["promoted"] is True
    assert own.booked() == [(f"{NAME}@v1", 6), (f"{NAME}@v2", 6)]
    history = own.api("GET", f"/{NAME}/history?alias=prod")["data"]
    assert [(each["revision"], each["to_version"]) for each in history] == [(2, 2), (1, 1)]
    assert sum("was promoted" in message for message in service.call(stage.messages(job))) == 1
    assert service.call(stage.rows("select count(*) from evaluation_scores"))[0][0] == 0


def test_an_evaluation_waits_for_a_replica_and_goes_on(
    owner: Owners, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.promotions.executor.LATER", timedelta(seconds=0.1))
    own = owner()
    own.point(1, "prod")
    plan.texts[own.adapters[0]] = WRONG
    refused: list[str] = []

    async def full(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        refused.append(body["model"])
        problem = {"message": "Too many requests wait for this replica.", "code": "no_capacity"}
        return web.json_response({"error": problem}, status=503, headers={"Retry-After": "0.1"})

    plan.replica.script = full
    own.succeeded(evaluation=EXACT)
    wait_until(lambda: len(refused) > 8, what="it was refused")
    assert own.newest()["status"] == "running"
    plan.replica.script = plan
    assert own.over()["promotion"]["promoted"] is True


def test_what_a_replica_fails_on_promotes_nothing(owner: Owners, plan: Plan) -> None:
    own = owner()
    own.point(1, "prod")
    plan.failing.add(own.adapters[0])
    job = own.succeeded(evaluation=EXACT)
    found = own.over()
    assert (found["status"], found["error"]["code"]) == ("failed", "replica_unavailable")
    assert (found["promotion"]["promoted"], own.stands_for()) == (False, 1)
    assert "its evaluation failed" in own.told(job).lower()


def test_webhooks_tell_of_both_ends(owner: Owners, plan: Plan) -> None:
    own = owner()
    hear(own, "adapter.promoted", "adapter.promotion_refused")
    ids: list[str] = []
    for alias in ("prod", "default"):
        own.succeeded(alias=alias, evaluation=EXACT)
        ids.append(own.over()["id"])
    promoted, refused = heard(own)
    assert promoted == {
        "type": "adapter.promoted", "id": own.id, "adapter": NAME, "alias": "prod", "version": 2,
        "previous_version": None, "revision": 1, "traffic": None, "shadow": None, "cause": "evaluation",
        "evaluation_id": ids[0],
    }  # fmt: skip
    assert refused == {
        "type": "adapter.promotion_refused", "id": own.id, "adapter": NAME, "alias": "default", "version": 3,
        "evaluation_id": ids[1],
    }  # fmt: skip
