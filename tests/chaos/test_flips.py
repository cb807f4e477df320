"""A few flips of an alias under traffic over two gateways, and how they are judged (`make chaos-flips` makes many)."""

from service.settings import ServiceSettings
from tests.benchmarks.serving.load import session
from tests.chaos.flips.__main__ import flipped
from tests.chaos.flips.grounds import stand_in
from tests.chaos.flips.judging import Asked, Flip, lateness, problems_of, told

FLIPS = [Flip(1, 0.0, 0.0), Flip(2, 10.0, 10.1), Flip(3, 20.0, 20.1), Flip(1, 30.0, 30.1)]


def answer(began: float, version: int | None, took: float = 0.05) -> Asked:
    return Asked(began, began + took, 0, version, "" if version else "status 503")


async def test_flips_under_traffic_lose_and_mix_nothing(service_settings: ServiceSettings) -> None:
    async with session() as client, stand_in(service_settings, client, versions=4) as ground:
        found = await flipped(ground, client, flips=20, rate=50, pause=0.2)
    assert found["flips"] == 20
    assert found["requests"] > 100
    assert problems_of(found) == []


def test_an_old_answer_is_late_from_the_acknowledgement_of_the_flip_that_ended_it() -> None:
    right = [answer(5, 1), answer(10.05, 1), answer(10.05, 2), answer(10.2, 2), answer(20.2, 3), answer(30.2, 1)]
    assert lateness(FLIPS, right) == ([0.0, 0.0, 0.0], 0)
    late, early = lateness(FLIPS, [*right, answer(10.5, 1), answer(10.3, 1), answer(25.1, 1), answer(30.3, 3)])
    assert ([round(each, 3) for each in late], early) == ([15.0, 0.0, 0.2], 0)


def test_one_that_began_before_and_ended_after_is_not_late() -> None:
    assert lateness(FLIPS, [answer(10.0, 1, took=15)])[0][0] == 0.0


def test_an_answer_of_a_version_that_nobody_had_asked_for_yet_is_told() -> None:
    assert lateness(FLIPS, [answer(5, 3)]) == ([0.0, 0.0, 0.0], 1)


def test_failures_and_what_comes_too_late_are_told() -> None:
    found = told(FLIPS, [answer(5, None), answer(12, 1)], 40)
    assert problems_of({**found, "not_booked": 2}) == [
        "1 failed_or_mixed",
        "2 not_booked",
        "old answers were begun for 1900.0 ms at p99",
    ]
