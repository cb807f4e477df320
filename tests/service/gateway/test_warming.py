"""Versions are loaded before they are asked for: as an alias gets them, when their owner says so, and while pinned."""

from collections import Counter
from collections.abc import Iterator

import pytest

from service.gateway import warm
from service.settings import ServiceSettings
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.gateway.registered import NAME, Registered
from tests.service.gateway.upstream import Upstream
from tests.service.stage import Stage


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> Iterator[ServiceSettings]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm, "PIN_SECONDS", 0.2)
        patch.setattr(warm, "AGAIN_SECONDS", 0.0)
        # Its one replica announces itself once for each test.
        yield service_settings.model_copy(update={"replica_ttl_seconds": 600.0})


@pytest.fixture
def bot(service: Service, stage: Stage, upstream: Upstream) -> Registered:
    made = Registered.made(service, stage, versions=4)
    wait_until(lambda: set(made.adapters) <= set(upstream.ensured), seconds=5, what="new models are warmed")
    upstream.ensured.clear()
    return made


def ensured(bot: Registered, upstream: Upstream) -> Counter[int]:
    """How often each version was."""
    return Counter(bot.adapters.index(each) + 1 for each in upstream.ensured if each in bot.adapters)


def test_whatever_an_alias_is_given_is_loaded_at_once(bot: Registered, upstream: Upstream) -> None:
    bot.point(2)
    wait_until(lambda: set(ensured(bot, upstream)) == {2}, seconds=2, what="the new version")
    upstream.ensured.clear()
    split = [{"version": 2, "weight": 9}, {"version": 3, "weight": 1}]
    bot.point(2, traffic=split, shadow={"version": 4, "fraction": 0.1})
    wait_until(lambda: set(ensured(bot, upstream)) == {2, 3, 4}, seconds=2, what="all that it may lead to")


def test_a_version_whose_owner_asks_for_it_is_loaded(bot: Registered, upstream: Upstream) -> None:
    bot.api("POST", f"/{NAME}/versions/v3/warm")
    wait_until(lambda: set(ensured(bot, upstream)) == {3}, seconds=2, what="the version")


def test_a_pinned_version_is_asked_for_again_and_again_until_it_no_longer_is(
    bot: Registered, upstream: Upstream
) -> None:
    bot.api("POST", f"/{NAME}/versions/2/pin")
    wait_until(lambda: ensured(bot, upstream)[2] >= 4, seconds=5, what="the pinned version")
    assert set(ensured(bot, upstream)) == {2}
    bot.api("POST", f"/{NAME}/versions/3/pin")
    bot.api("DELETE", f"/{NAME}/versions/2/pin")
    wait_until(lambda: ensured(bot, upstream)[3] >= 2, seconds=5, what="the other one")
    upstream.ensured.clear()
    wait_until(lambda: ensured(bot, upstream)[3] >= 3, seconds=5, what="the other one again")
    assert set(ensured(bot, upstream)) == {3}
    bot.api("DELETE", f"/{NAME}/versions/3/pin")


def test_no_more_are_kept_than_a_replica_has_slots(bot: Registered, upstream: Upstream, stage: Stage) -> None:
    """The stand-in has four."""
    bot.add()
    bot.add()
    for version in range(1, 7):
        bot.api("POST", f"/{NAME}/versions/{version}/pin")
    upstream.ensured.clear()
    wait_until(lambda: ensured(bot, upstream)[1] >= 4, seconds=5, what="the oldest")
    again = {version for version, times in ensured(bot, upstream).items() if times >= 2}
    assert again == {1, 2, 3, 4}
    for version in range(1, 7):
        bot.api("DELETE", f"/{NAME}/versions/{version}/pin")
