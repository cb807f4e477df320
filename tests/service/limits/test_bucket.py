"""The arithmetic of a bucket, and how a duration is told."""

import random

import pytest

from service.limits.bucket import Bucket, shown


def test_a_full_bucket_gives_a_minutes_worth_at_once_and_then_one_at_a_time() -> None:
    bucket = Bucket()
    for _ in range(60):
        assert bucket.wait(100.0, 60, 1) == 0
        bucket.take(100.0, 60, 1)
    assert bucket.left(100.0, 60) == 0
    assert bucket.wait(100.0, 60, 1) == pytest.approx(1)
    assert bucket.wait(101.0, 60, 1) == pytest.approx(0)
    assert bucket.full_in(130.0) == pytest.approx(30)
    assert bucket.left(130.0, 60) == 30


def test_what_no_full_bucket_holds_never_comes() -> None:
    assert Bucket().wait(0.0, 10, 11) == float("inf")
    assert Bucket().wait(0.0, 0, 1) == float("inf")


def test_what_was_given_back_can_be_taken_again() -> None:
    bucket = Bucket()
    bucket.take(0.0, 100, 100)
    bucket.take(0.0, 100, -40)
    assert bucket.left(0.0, 100) == 40


@pytest.mark.parametrize("seed", range(5))
def test_over_time_no_more_passes_than_the_limit_and_one_bucket(seed: int) -> None:
    chance, bucket, now, passed, limit = random.Random(seed), Bucket(), 1000.0, 0, 600
    while now < 1600.0:
        amount = chance.randint(1, 40)
        if bucket.wait(now, limit, amount) == 0:
            bucket.take(now, limit, amount)
            passed += amount
        now += chance.expovariate(5)
    assert passed <= limit + limit * 10
    assert passed >= limit * 10 * 0.95


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0ms"), (0.0121, "13ms"), (0.5, "500ms"), (1, "1s"), (1.5, "1.5s"), (59.9995, "1m0s"), (360, "6m0s")],
)
def test_a_duration_is_told_as_openai_tells_it(seconds: float, words: str) -> None:
    assert shown(seconds) == words
