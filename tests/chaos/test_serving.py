"""What `make chaos-serving` calls a failure: which kill explains what, and that wrong answers are explained by none."""

from typing import Any

import pytest

from tests.benchmarks.serving.load import Answer
from tests.benchmarks.serving.shop import Ware
from tests.chaos.serving.judging import judged, problems_of
from tests.chaos.serving.kills import Kill, Ready, Victim
from tests.chaos.serving.sweep import Sweep
from tests.chaos.serving.traffic import Market, Request, Traffic

WARE = Ware("project", "key", "model", "adapter", "abc")
QUIET: dict[str, Any] = {
    "disk_to_budget": 0.9,
    "engine_deaths_not_caused": 0,
    "turns_not_given_back": 0,
    "deleted_but_held": 0,
    "evictions": 600,
    "deletions": 150,
}


def kill(
    *, starts: bool = True, ready: Ready | None = None, back: float | None = None, answered: float = 101.0
) -> Kill:
    """At 100, of what is called `it`; its one model is asked at 100.5 and answers."""
    sweep = Sweep({"model": 100.5}, {"model": answered})
    return Kill(Victim("it", "part", lambda stack: 1, ready, starts), 100.0, back, sweep)


def request(began: float, ended: float, problem: str = "", *, wrong: bool = False) -> Request:
    return Request("model", began, ended, problem, wrong)


def verdict(*requests: Request, killed: Kill | None = None, **found: Any) -> list[str]:
    return problems_of(judged(list(requests), [killed or kill()]) | QUIET | found, seconds=600, kills=1)


async def never(ground: object) -> bool:
    return False


def test_failures_in_the_seconds_after_the_end_of_a_replica_are_its_own() -> None:
    assert verdict(request(99, 100.5, "broke off"), request(101.9, 102.5, "status 503"), request(101, 101.2)) == []


def test_failures_before_and_later_are_not() -> None:
    assert verdict(request(98, 99, "status 503")) == ["1 stray_failures"]
    assert verdict(request(102.1, 103, "status 503")) == ["1 stray_failures"]


def test_the_end_of_the_one_service_explains_failures_until_it_is_back_and_no_longer() -> None:
    service = kill(starts=False, ready=never, back=104.0, answered=104.5)
    assert verdict(request(104.9, 106, "refused"), killed=service) == []
    assert verdict(request(105.1, 106, "refused"), killed=service) == ["1 stray_failures"]
    slow = kill(starts=False, ready=never, back=131.0, answered=131.5)
    assert verdict(killed=slow) == ["it: it was not back in time"]
    gone = kill(starts=False, ready=never)
    assert verdict(killed=gone) == ["it: it was not back in time"]


def test_the_end_of_the_trainer_explains_nothing() -> None:
    assert verdict(request(100, 101, "status 503"), killed=kill(starts=False)) == ["1 stray_failures"]


def test_no_kill_explains_a_wrong_answer() -> None:
    assert verdict(request(100.5, 101, "said 'x'", wrong=True)) == ["1 wrong_answers", "1 stray_failures"]


def test_every_model_must_answer_again_in_time() -> None:
    assert verdict(killed=kill(answered=102.5)) == []
    assert verdict(killed=kill(answered=102.6)) == ["it: a model took 2.10 s to answer again"]
    silent = kill()
    silent.sweep.asked["other"] = 100.6
    assert verdict(killed=silent) == ["it: 1 of 2 models never answered again"]
    # What was asked while the service was away is counted from its return.
    assert verdict(killed=kill(starts=False, ready=never, back=104.0, answered=105.9)) == []


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ({"disk_to_budget": 1.2}, "1.2 of the disk budget"),
        ({"engine_deaths_not_caused": 2}, "2 engine_deaths_not_caused"),
        ({"turns_not_given_back": 1}, "1 turns_not_given_back"),
        ({"deleted_but_held": 1}, "1 deleted_but_held"),
        ({"evictions": 239}, "only 239 evictions"),
        ({"deletions": 59}, "only 59 deletions"),
    ],
)
def test_what_else_is_told(found: dict[str, Any], problem: str) -> None:
    assert verdict(**found) == [problem]


def test_a_kill_that_was_left_out_is_told() -> None:
    assert problems_of(judged([], [kill()]) | QUIET, seconds=600, kills=8) == ["1 of 8 kills"]


def test_answers_are_judged_by_mark_by_manner_and_by_what_is_deleted() -> None:
    market = Market([WARE], base="base")
    traffic = Traffic("http://127.0.0.1:1", market)

    def judged_as(
        status: int,
        text: str = "abc",
        *,
        whole: bool = True,
        began: float = 0.0,
        ware: Ware = WARE,
        manner: str = "whole",
    ) -> str:
        return traffic._judged(ware, Answer(status, 0.1, 3, "gpu", text, whole), manner, began)

    assert judged_as(200) == ""
    assert judged_as(200, "abd") == "said 'abd' instead of 'abc'"
    assert judged_as(200, "abcx") == "said 'abcx' instead of 'abc'"
    assert judged_as(200, "abcx", manner="left") == ""
    assert judged_as(200, "ab", whole=False) == "the answer broke off"
    assert judged_as(404) == "status 404"
    market.take_off(WARE)
    assert judged_as(404, began=10.5) == ""
    market.deleted[WARE.model] = 10.0
    assert judged_as(200, began=10.5) == ""
    assert judged_as(200, began=11.5) == "a deleted model answered"
    base = market.plain(WARE)
    assert judged_as(200, "order 4821", ware=base) == ""
    assert judged_as(200, "abc", ware=base) == "said 'abc' instead of ''"
