"""Rates of several gateways over one database, and what a caller is told."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from service.contracts.ids import KeyId, OrganizationId, ProjectId
from service.db import Database, DatabaseUnavailable
from service.errors import RateLimited
from service.limits.rates import Rates
from service.settings import ServiceSettings
from service.tenants.auth import ProjectLimits, Tenant
from tests.service.stage import Stage, open_stage


@pytest.fixture(scope="module")
async def stage(service_settings: ServiceSettings) -> AsyncIterator[Stage]:
    async with open_stage(service_settings) as stage:
        yield stage


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def tenant(stage: Stage) -> Tenant:
    limits = ProjectLimits(requests_per_minute=60, tokens_per_minute=6000)
    project = await stage.project()
    return Tenant(project, OrganizationId("org-a"), "acme", KeyId("key_a"), limits=limits)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rates(stage: Stage, clock: Clock) -> Rates:
    return Rates(stage.resources.settings, stage.resources.database, clock)


def admitted(rates: Rates, tenant: Tenant, tokens: int = 1) -> int:
    """How many more requests pass."""
    for count in itertools.count():
        try:
            rates.admit(tenant, tokens)
        except RateLimited:
            return count
    raise AssertionError("counting has no end")


def told(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in headers}


async def test_an_admitted_request_is_told_what_is_left(rates: Rates, tenant: Tenant, clock: Clock) -> None:
    assert told(rates.admit(tenant, 600).headers) == {
        "limit-requests": "60",
        "limit-tokens": "6000",
        "remaining-requests": "59",
        "remaining-tokens": "5400",
        "reset-requests": "1s",
        "reset-tokens": "6s",
    }


async def test_a_refusal_says_when_to_come_again(rates: Rates, tenant: Tenant, clock: Clock) -> None:
    assert admitted(rates, tenant) == 60
    with pytest.raises(
        RateLimited, match=r"requests per min \(RPM\): Limit 60, Used 60, Requested 1.*again in 1s"
    ) as no:
        rates.admit(tenant, 1)
    assert no.value.code == "rate_limit_exceeded"
    assert no.value.headers["Retry-After"] == "1"
    assert no.value.headers["retry-after-ms"] == "1000"
    assert no.value.headers["x-ratelimit-remaining-requests"] == "0"
    clock.now += 1.0
    rates.admit(tenant, 1)


async def test_tokens_are_settled_by_what_was_used(rates: Rates, tenant: Tenant) -> None:
    first = rates.admit(tenant, 6000)
    with pytest.raises(RateLimited, match="tokens per min"):
        rates.admit(tenant, 1)
    first.settle(1000)
    first.settle(2000)
    assert told(rates.admit(tenant, 1000).headers)["remaining-tokens"] == "3000"


async def test_more_than_a_minutes_worth_is_refused_for_good(rates: Rates, tenant: Tenant) -> None:
    with pytest.raises(RateLimited, match="Request too large") as refused:
        rates.admit(tenant, 6001)
    assert refused.value.headers["x-should-retry"] == "false"
    assert "Retry-After" not in refused.value.headers


async def test_projects_do_not_take_each_others(rates: Rates, tenant: Tenant) -> None:
    other = replace(tenant, project_id=ProjectId("proj_other"))
    assert admitted(rates, tenant) == admitted(rates, other) == 60


async def test_without_limits_of_its_own_a_project_has_the_settings(rates: Rates, tenant: Tenant, stage: Stage) -> None:
    plain = replace(tenant, limits=ProjectLimits())
    limit = stage.resources.settings.max_requests_per_minute
    assert told(rates.admit(plain, 0).headers)["limit-requests"] == str(limit)


async def test_three_gateways_together_stay_at_the_limit(stage: Stage, tenant: Tenant) -> None:
    """Each hears of the others' use at its next exchange with the database."""
    gateways = [Rates(stage.resources.settings, stage.resources.database) for _ in range(3)]
    passed = admitted(gateways[0], tenant, 0)
    for gateway in (gateways[0], *gateways[1:]):
        passed += sum(1 for _ in range(5) if passes(gateway, tenant))
        await gateway.share()
    assert passed <= 60 + 10 + 1
    assert not any(passes(gateway, tenant) for gateway in gateways)


async def test_what_was_let_through_meanwhile_is_owed(stage: Stage, tenant: Tenant) -> None:
    clocks = [Clock(), Clock()]
    gateways = [Rates(stage.resources.settings, stage.resources.database, clock) for clock in clocks]
    assert [admitted(gateway, tenant, 0) for gateway in gateways] == [60, 60]
    await asyncio.gather(*(gateway.share() for gateway in gateways))
    for gateway in gateways:
        assert not passes(gateway, tenant)
        await gateway.share()
    for gateway, clock in zip(gateways, clocks, strict=True):
        clock.now += 30
        assert not passes(gateway, tenant), "half a minute's worth does not pay for two"


async def test_while_the_database_is_down_nothing_used_is_forgotten(
    service_settings: ServiceSettings, tenant: Tenant, stage: Stage
) -> None:
    nowhere = "postgresql+asyncpg://weft_control@/x?host=/nowhere"
    values = service_settings.model_dump() | {"database_url": nowhere, "control_database_url": nowhere}
    down = Database(ServiceSettings.model_validate(values))
    rates = Rates(service_settings, down)
    assert admitted(rates, tenant, 0) == 60
    with pytest.raises(DatabaseUnavailable):
        await rates.share()
    assert not passes(rates, tenant)
    rates._database = stage.resources.database
    await rates.share()
    other = Rates(service_settings, stage.resources.database)
    other.admit(tenant, 0)
    await other.share()
    assert not passes(other, tenant)


def passes(rates: Rates, tenant: Tenant) -> bool:
    try:
        rates.admit(tenant, 0)
    except RateLimited:
        return False
    return True
