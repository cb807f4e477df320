"""An alias whose owner set a bound goes back by itself, once, when its version fails more often."""

from collections.abc import Callable

from service.promotions import rollback
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.gateway.registered import NAME
from tests.service.promotions.conftest import Owner, Plan
from tests.service.registry.events import hear, heard
from tests.service.stage import Stage

Owners = Callable[..., Owner]
GUARD = {"max_error_rate": 0.5, "min_requests": 4, "window_seconds": 600}


def _fail_until_back(own: Owner, alias: str, to: int) -> None:
    def back() -> bool:
        own.ask(f"{NAME}@{alias}")
        return own.api("GET", f"/{NAME}/aliases/{alias}")["version"] == to

    wait_until(back, 30, what="the alias went back")


def test_a_version_that_fails_is_taken_back_once(service: Service, stage: Stage, owner: Owners, plan: Plan) -> None:
    own = owner(3)
    own.point(1, "prod", automatic_rollback=GUARD)
    own.point(2, "prod")
    hear(own, "adapter.rolled_back")
    assert own.point(3, "prod")["automatic_rollback"] == GUARD, "it stays over promotions"
    plan.failing |= {own.adapters[2], own.adapters[1]}
    _fail_until_back(own, "prod", 2)
    history = own.api("GET", f"/{NAME}/history?alias=prod")["data"]
    assert [(each["action"], each["to_version"]) for each in history[:2]] == [("automatic_rollback", 2), ("promote", 3)]
    assert history[0]["actor"] == "service"
    assert "requests to v3 failed" in history[0]["reason"]
    query = "select type, details from audit_logs where project_id = :project order by created_at desc limit 1"
    ((kind, details),) = service.call(stage.rows(query, project=own.project))
    assert (kind, details["version"]) == ("adapter.alias.rolled_back", 2)
    (told,) = heard(own)
    assert (told["adapter"], told["alias"], told["cause"]) == (NAME, "prod", "automatic")
    assert (told["version"], told["previous_version"], told["revision"]) == (2, 3, 4)

    # The one before fails as well: that is not walked back any further.
    def many() -> bool:
        own.ask(f"{NAME}@prod")
        return own.counts(2, "prod")[1] >= 3 * GUARD["min_requests"]

    wait_until(many, 30, what="the version before failed often")
    alias = own.api("GET", f"/{NAME}/aliases/prod")
    assert (alias["version"], alias["revision"], alias["automatic_rollback"]) == (2, 4, GUARD)


def test_a_canary_that_fails_ends(owner: Owners, plan: Plan) -> None:
    own = owner(2)
    own.point(1, "prod", automatic_rollback=GUARD)
    split = [{"version": 1, "weight": 1}, {"version": 2, "weight": 1}]
    own.point(1, "prod", traffic=split)
    plan.failing.add(own.adapters[1])

    def whole() -> bool:
        own.ask(f"{NAME}@prod")
        return own.api("GET", f"/{NAME}/aliases/prod")["traffic"] is None

    wait_until(whole, 30, what="the split ended")
    assert own.api("GET", f"/{NAME}/aliases/prod")["version"] == 1
    assert own.api("GET", f"/{NAME}/history?alias=prod")["data"][0]["action"] == "automatic_rollback"


def test_what_did_not_come_through_the_alias_does_not_move_it(
    service: Service, stage: Stage, owner: Owners, plan: Plan
) -> None:
    own = owner(2)
    own.point(1, "prod", automatic_rollback=GUARD)
    own.point(2, "prod")
    own.point(2, "staging")
    plan.failing.add(own.adapters[1])
    for reference in (f"{NAME}@v2", f"{NAME}@staging"):
        for _ in range(2 * GUARD["min_requests"]):
            assert own.ask(reference).status_code == 503
    assert own.counts(2, "staging") == (8, 8)
    judge = {"type": "score_model", "model": f"{NAME}@prod", "input": [{"role": "user", "content": "Is it right?"}]}
    own.api("POST", f"/{NAME}/evaluations", version=1, file_id=own.held_out(), grader=judge)
    assert own.over()["status"] == "failed", "its judge did not answer"
    assert own.counts(2, "prod") == (0, 0)
    assert service.call(rollback.sweep(stage.resources)) == 0
    assert own.stands_for("prod") == 2


def test_a_version_within_the_bound_stays(owner: Owners, plan: Plan) -> None:
    own = owner(2)
    own.point(1, "prod", automatic_rollback=GUARD)
    own.point(2, "prod")

    def enough() -> bool:
        own.ask(f"{NAME}@prod")
        return own.counts(2, "prod")[0] >= 3 * GUARD["min_requests"]

    wait_until(enough, 30, what="requests")
    assert own.api("GET", f"/{NAME}/aliases/prod")["version"] == 2
    assert own.point(2, "prod", automatic_rollback=None)["automatic_rollback"] is None
    assert own.api("GET", f"/{NAME}/history?alias=prod")["data"][0]["action"] == "update"
