"""Who of an alias's versions answers whom: by weight, the same one for the same asker, and few change over."""

import itertools
from collections import Counter

import orjson
import pytest

from service.gateway.shares import asker_of, chosen

ASKERS = [f"user-{number}" for number in range(4000)]


def parts(shares: list[tuple[int, float]], place: str = "p") -> dict[str, int]:
    """The version of each asker."""
    return {asker: shares[chosen(place, shares, asker)][0] for asker in ASKERS}


def test_askers_are_dealt_out_by_weight_and_always_in_the_same_way() -> None:
    shares = [(1, 0.7), (2, 0.2), (7, 0.1)]
    found = parts(shares)
    assert found == parts(shares) == parts(list(reversed(shares)))
    counted = Counter(found.values())
    for version, weight in shares:
        assert counted[version] / len(ASKERS) == pytest.approx(weight, abs=0.03)


def test_a_growing_canary_keeps_those_it_has_and_takes_from_the_other_alone() -> None:
    steps = [parts([(1, 1 - share), (2, share)]) for share in (0.01, 0.1, 0.5, 0.99)]
    for before, after in itertools.pairwise(steps):
        assert {asker for asker in ASKERS if before[asker] == 2} < {asker for asker in ASKERS if after[asker] == 2}


def test_a_third_version_moves_nobody_between_the_first_two() -> None:
    before, after = parts([(1, 0.5), (2, 0.5)]), parts([(1, 0.4), (2, 0.4), (3, 0.2)])
    assert {(before[asker], after[asker]) for asker in ASKERS} == {(1, 1), (2, 2), (1, 3), (2, 3)}


def test_splits_are_independent_of_each_other() -> None:
    one, other = parts([(1, 0.5), (2, 0.5)], "a@prod"), parts([(1, 0.5), (2, 0.5)], "b@prod")
    same = sum(one[asker] == other[asker] for asker in ASKERS)
    assert same / len(ASKERS) == pytest.approx(0.5, abs=0.05)


def test_who_says_nothing_is_dealt_out_by_chance() -> None:
    shares = [(1, 0.9), (2, 0.1)]
    counted = Counter(chosen("p", shares, None) for _ in range(4000))
    assert counted[1] / 4000 == pytest.approx(0.1, abs=0.03)


def test_a_version_without_weight_gets_nothing() -> None:
    assert set(parts([(1, 1.0), (2, 0.0)]).values()) == {1}


@pytest.mark.parametrize(
    ("fields", "asker"),
    [
        ({"user": "u", "safety_identifier": "s", "prompt_cache_key": "k"}, "u"),
        ({"user": None, "safety_identifier": "s", "prompt_cache_key": "k"}, "s"),
        ({"user": "", "prompt_cache_key": "k"}, "k"),
        ({"user": 7}, None),
        ({}, None),
    ],
)
def test_who_asks_is_what_the_first_given_field_says(fields: dict[str, object], asker: str | None) -> None:
    assert asker_of(orjson.dumps({"model": "m", **fields})) == asker
