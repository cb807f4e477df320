"""What `make chaos-serving` calls a failure: which kill explains what, and that wrong answers are explained by none."""

from tests.benchmarks.serving.load import Answer
from tests.benchmarks.serving.shop import Ware
from tests.chaos.serving.__main__ import judged, problems_of
from tests.chaos.serving.kills import Kill, Victim
from tests.chaos.serving.traffic import Market, Request, Traffic

WARE = Ware("project", "key", "model", "adapter", "abc")
REPLICA = Kill(Victim("engine", "replica", lambda stack: 1, 2.0, starts=True), at=100.0)
QUIET = {"disk_to_budget": 0.9, "engine_deaths_not_caused": 0}


def request(began: float, ended: float, problem: str = "", *, wrong: bool = False) -> Request:
    return Request(WARE, began, ended, problem, wrong)


def verdict(*requests: Request) -> list[str]:
    return problems_of(judged(list(requests), [REPLICA]) | QUIET)


def test_failures_in_the_seconds_after_a_kill_are_its_own() -> None:
    assert verdict(request(99, 100.5, "broke off"), request(101.9, 102.5, "status 503"), request(101, 101.2)) == []


def test_failures_before_and_later_are_not() -> None:
    assert verdict(request(98, 99, "status 503")) == ["1 stray_failures"]
    assert verdict(request(102.1, 103, "status 503")) == ["1 stray_failures"]


def test_no_kill_explains_a_wrong_answer() -> None:
    assert verdict(request(100.5, 101, "said 'x'", wrong=True)) == ["1 wrong_answers", "1 stray_failures"]


def test_a_model_that_takes_too_long_to_answer_again_is_told() -> None:
    assert verdict(request(100.5, 101, "status 503"), request(101.5, 103.5)) == [
        "engine: a model took too long to answer again"
    ]


def test_deaths_and_full_disks_are_told() -> None:
    found = judged([], [])
    assert problems_of(found | {"disk_to_budget": 1.2, "engine_deaths_not_caused": 0}) == ["1.2 of the disk budget"]
    assert problems_of(found | {"disk_to_budget": 0.5, "engine_deaths_not_caused": 2}) == ["2 engine deaths"]


def test_answers_are_judged_by_mark_and_by_what_is_deleted() -> None:
    market = Market([WARE])
    traffic = Traffic("http://127.0.0.1:1", market)

    def judged_as(status: int, text: str = "abc", *, whole: bool = True, began: float = 0.0) -> str:
        return traffic._judged(WARE, Answer(status, 0.1, 3, "gpu", text, whole), began)

    assert judged_as(200) == ""
    assert judged_as(200, "abd") == "said 'abd' instead of 'abc'"
    assert judged_as(200, "ab", whole=False) == "the stream broke off"
    assert judged_as(404) == "status 404"
    market.deleted[WARE.model] = 10.0
    assert judged_as(404, began=10.5) == ""
    assert judged_as(200, began=10.5) == ""
    assert judged_as(200, began=11.5) == "a deleted model answered"
