"""Aliases: promoting, splitting, rolling back, and what is remembered of it."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.service.registry.conftest import Owner
from tests.service.registry.events import hear, heard

PROD = "/adapters/bot/aliases/prod"


@pytest.fixture
def bot(owner: Owner) -> Owner:
    return with_bot(owner)


@pytest.fixture(scope="module")
def refused_bot(owners: Callable[[], Owner]) -> Owner:
    """For tests that change nothing."""
    return with_bot(owners())


def with_bot(owner: Owner) -> Owner:
    """An owner of `bot` with versions 1 to 3, `default` at 1."""
    (model,) = owner.registered("bot")
    for _ in range(2):
        owner.ask("POST", "/adapters/bot/versions", json={"source": {"type": "model", "model": model}})
    return owner


def put(owner: Owner, version: int, **body: Any) -> Any:
    return owner.ask("PUT", PROD, json={"version": version, **body})


def back(owner: Owner, alias: str = "prod") -> int:
    return owner.ask("POST", "/adapters/bot/rollback", json={"alias": alias})["version"]


def test_a_promotion_is_seen_by_the_next_lookup_and_remembered(bot: Owner) -> None:
    first = put(bot, 1, reason="first")
    assert (first["id"], first["revision"]) == ("bot@prod", 1)
    second = put(bot, 2)
    assert second["revision"] == 2
    assert bot.served("bot@prod") == {2: 1.0}
    assert bot.ask("GET", PROD) == second
    assert put(bot, 2) == second, "what is so already changes nothing"
    assert bot.ask("GET", "/adapters/bot")["aliases"] == {"default": 1, "prod": 2}
    newest, before = bot.ask("GET", "/adapters/bot/history", params={"alias": "prod"})["data"]
    assert (newest["action"], newest["from_version"], newest["to_version"]) == ("promote", 1, 2)
    assert (before["action"], before["from_version"], before["reason"]) == ("promote", None, "first")
    assert newest["actor"].startswith("key_")
    assert len(bot.ask("GET", "/adapters/bot/history")["data"]) == 3


def test_compare_and_set(bot: Owner) -> None:
    assert bot.refused("PUT", PROD, 409, json={"version": 1, "if_revision": 1}) == "revision_mismatch"
    assert put(bot, 1, if_revision=0)["revision"] == 1
    assert bot.refused("PUT", PROD, 409, json={"version": 2, "if_revision": 0}) == "revision_mismatch"
    headers = {"if-match": bot.http.get(PROD).headers["etag"]}
    assert bot.ask("PUT", PROD, json={"version": 2}, headers=headers)["revision"] == 2
    assert bot.refused("PUT", PROD, 409, json={"version": 3}, headers=headers) == "revision_mismatch"
    assert bot.refused("DELETE", PROD, 409, headers=headers) == "revision_mismatch"
    assert bot.refused("PUT", PROD, 400, json={"version": 3}, headers={"if-match": "x"}) == "invalid_if_match"
    assert bot.refused("PUT", PROD, 400, json={"version": 3, "if_revision": 2}, headers=headers) == "invalid_request"
    assert bot.served("bot@prod") == {2: 1.0}
    bot.ask("DELETE", PROD, headers={"if-match": '"2"'})
    assert bot.route("bot@prod") is None
    # Nobody's old revision fits the alias that is made anew.
    assert put(bot, 1)["revision"] == 4


def test_a_split_and_a_shadow(bot: Owner) -> None:
    split = [{"version": 1, "weight": 90}, {"version": 2, "weight": 10}]
    shown = put(bot, 1, traffic=split, shadow={"version": 3, "fraction": 0.25})
    assert shown["traffic"] == split
    assert shown["shadow"] == {"version": 3, "fraction": 0.25}
    route = bot.route("bot@prod")
    assert route is not None
    assert bot.served("bot@prod") == {1: 0.9, 2: 0.1}
    assert route.revision == 1
    assert (route.shadow.version, route.shadow.weight) == (3, 0.25)  # type: ignore[union-attr]
    put(bot, 1, traffic=split)
    assert bot.route("bot@prod").shadow is None  # type: ignore[union-attr]
    put(bot, 1)
    assert bot.served("bot@prod") == {1: 1.0}
    actions = [each["action"] for each in bot.ask("GET", "/adapters/bot/history", params={"alias": "prod"})["data"]]
    assert actions == ["traffic", "shadow", "promote"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"version": 9}, 404),
        ({"version": 1, "shadow": {"version": 9, "fraction": 0.5}}, 404),
        ({"version": 1, "shadow": {"version": 1, "fraction": 0.5}}, 400),
        ({"version": 1, "shadow": {"version": 2, "fraction": 1.5}}, 400),
        ({"version": 1, "traffic": [{"version": 2, "weight": 1}]}, 400),
        ({"version": 1, "traffic": [{"version": 1, "weight": 1}, {"version": 1, "weight": 1}]}, 400),
        ({"version": 1, "traffic": [{"version": 1, "weight": 0}, {"version": 2, "weight": 1}]}, 400),
        ({"version": 1, "traffic": []}, 400),
        ({"version": "1"}, 400),
        ({}, 400),
    ],
)
def test_an_alias_that_makes_no_sense_is_refused(refused_bot: Owner, body: dict[str, Any], status: int) -> None:
    refused_bot.refused("PUT", PROD, status, json=body)
    assert refused_bot.route("bot@prod") is None


@pytest.mark.parametrize("alias", ["v1", "V", "a b", "1", "a" * 33])
def test_an_alias_that_could_be_taken_for_a_version_is_refused(refused_bot: Owner, alias: str) -> None:
    assert refused_bot.refused("PUT", f"/adapters/bot/aliases/{alias}", 400, json={"version": 1}) == "invalid_alias"
    assert refused_bot.refused("GET", f"/adapters/bot/aliases/{alias}", 404) == "alias_not_found"


def test_rolling_back_goes_further_each_time(bot: Owner) -> None:
    for version in (1, 2, 3):
        put(bot, version)
    assert [back(bot), back(bot)] == [2, 1]
    assert bot.refused("POST", "/adapters/bot/rollback", 409, json={"alias": "prod"}) == "no_previous_version"
    put(bot, 3)
    assert back(bot) == 1
    assert bot.refused("POST", "/adapters/bot/rollback", 409, json={}) == "no_previous_version"
    assert bot.refused("POST", "/adapters/bot/rollback", 404, json={"alias": "none"}) == "alias_not_found"


def test_rolling_back_skips_versions_that_are_gone(bot: Owner) -> None:
    for version in (1, 2, 1, 3):
        put(bot, version)
    put(bot, 2)
    bot.ask("DELETE", "/adapters/bot/versions/3")
    assert [back(bot), back(bot), back(bot)] == [1, 2, 1]


@pytest.mark.parametrize("main", [1, 2])
def test_rolling_back_ends_a_split(bot: Owner, main: int) -> None:
    """Whichever of both is the main one, all traffic goes to the version that had it all before."""
    put(bot, 1)
    put(bot, main, traffic=[{"version": 1, "weight": 50}, {"version": 2, "weight": 50}])
    put(bot, main, traffic=[{"version": 1, "weight": 10}, {"version": 2, "weight": 90}])
    assert back(bot) == 1
    assert bot.served("bot@prod") == {1: 1.0}


def test_rolling_back_a_first_split_settles_on_its_main_version(bot: Owner) -> None:
    put(bot, 2, traffic=[{"version": 1, "weight": 1}, {"version": 2, "weight": 1}])
    assert back(bot) == 2
    assert bot.served("bot@prod") == {2: 1.0}


def test_a_rollback_is_repeated_safely_under_its_key(bot: Owner) -> None:
    for version in (1, 2, 3):
        put(bot, version)
    headers = {"idempotency-key": "roll"}
    told = [bot.ask("POST", "/adapters/bot/rollback", json={"alias": "prod"}, headers=headers) for _ in range(3)]
    assert told[0]["version"] == 2
    assert told == told[:1] * 3
    assert bot.served("bot@prod") == {2: 1.0}


def test_every_change_is_told_to_webhooks(bot: Owner) -> None:
    kinds = ("adapter.promoted", "adapter.rolled_back", "adapter.alias.updated", "adapter.alias.deleted")
    hear(bot, *kinds)
    put(bot, 1)
    put(bot, 2)
    put(bot, 2)
    split = [{"version": 2, "weight": 9.0}, {"version": 3, "weight": 1.0}]
    put(bot, 2, traffic=split)
    put(bot, 2, traffic=split, automatic_rollback={"max_error_rate": 0.5})
    back(bot)
    bot.ask("DELETE", PROD)
    told = heard(bot)
    assert [(each["type"], each["version"], each["previous_version"], each["revision"]) for each in told] == [
        ("adapter.promoted", 1, None, 1), ("adapter.promoted", 2, 1, 2), ("adapter.alias.updated", 2, 2, 3),
        ("adapter.alias.updated", 2, 2, 4), ("adapter.rolled_back", 2, 2, 5), ("adapter.alias.deleted", None, 2, 6),
    ]  # fmt: skip
    assert [each["traffic"] for each in told] == [None, None, split, split, None, None]
    same = {(each["id"], each["adapter"], each["alias"], each["cause"], each["evaluation_id"]) for each in told}
    assert same == {(bot.ask("GET", "/adapters/bot")["id"], "bot", "prod", "manual", None)}


def test_a_first_version_that_a_job_makes_is_promoted_by_the_service(owner: Owner) -> None:
    hear(owner, "adapter.promoted")
    owner.trained(adapter="made")
    (told,) = heard(owner)
    assert (told["alias"], told["version"], told["cause"]) == ("default", 1, "automatic")
