"""Budgets by the price list, and that a spent one stops what costs money."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from sqlalchemy import text

from service.contracts.ids import ProjectId
from service.errors import RateLimited
from service.jobs import lifecycle
from service.jobs.create import create
from service.jobs.schemas import CreateJob
from service.limits.spend import require_budget, require_unreserved, spent_this_month
from service.settings import ServiceSettings
from service.usage.ledger import UsageEntry, record
from service.usage.prices import Prices, base_of
from tests.service.stage import Stage, open_stage

IDS = itertools.count()
LONG_AGO = datetime(2020, 1, 31, tzinfo=UTC)


@pytest.fixture(scope="module")
async def stage(service_settings: ServiceSettings) -> AsyncIterator[Stage]:
    prices = {
        "input_price_per_million_tokens": {"weft-tiny": 1.0},
        "training_price_per_million_tokens": {"weft-tiny": 3.0},
    }
    async with open_stage(service_settings.model_copy(update=prices)) as stage:
        yield stage


async def use(stage: Stage, project: ProjectId, model: str, **tokens: int) -> None:
    async with stage.resources.database.control() as session:
        await record(session, [UsageEntry(f"r{next(IDS)}", project, "completion", model, **tokens)])


async def budget(stage: Stage, project: ProjectId, cents: int | None) -> None:
    async with stage.resources.database.control() as session:
        change = text("update projects set monthly_budget_cents = :cents where id = :id")
        await session.execute(change, {"cents": cents, "id": project})


def test_adapters_cost_what_their_base_costs() -> None:
    assert base_of("ft:weft-tiny:acme:x:12345678") == "weft-tiny"
    assert base_of("ft:weft-tiny:acme:x:12345678:ckpt-step-3") == "weft-tiny"
    assert base_of("weft-tiny") == "weft-tiny"
    assert base_of("ft:x") == "ft:x"


async def test_what_was_spent_is_exact_and_this_months_alone(stage: Stage) -> None:
    project = await stage.project()
    await use(stage, project, "ft:weft-tiny:a::00000000", prompt_tokens=3, completion_tokens=7)
    await use(stage, project, "weft-tiny", prompt_tokens=1_000_000, trained_tokens=2_000_000)
    await use(stage, project, "weft-tiny", prompt_tokens=5_000_000)
    long_ago = UsageEntry(f"r{next(IDS)}", project, "completion", "weft-tiny", prompt_tokens=10**9, created_at=LONG_AGO)
    async with stage.resources.database.control() as session:
        await record(session, [long_ago])
    async with stage.resources.database.tenant(project) as session:
        spent = await spent_this_month(session, project, Prices(stage.resources.settings))
    assert spent == Decimal("12.000003")


async def test_a_job_is_not_made_when_the_budget_is_spent(stage: Stage) -> None:
    project = await stage.project()
    await use(stage, project, "weft-tiny", prompt_tokens=1_000_000)
    await budget(stage, project, 100)
    with pytest.raises(RateLimited) as refused:
        await stage.job(project)
    assert (refused.value.code, refused.value.headers) == ("insufficient_quota", {"x-should-retry": "false"})
    await budget(stage, project, 101)
    await stage.job(project)
    await budget(stage, project, None)
    async with stage.resources.database.tenant(project) as session:
        await require_budget(session, stage.resources.settings)


async def test_what_unfinished_jobs_are_expected_to_cost_is_set_aside(stage: Stage) -> None:
    project = await stage.project()
    job = await stage.job(project)
    row = await stage.row(job)
    cents = row.expected_tokens * 3 / 10_000
    # A price at which one job takes a little less than the half of what is left.
    dear = {"training_price_per_million_tokens": {"weft-tiny": 3.0 * 49 / cents}}
    settings = stage.resources.settings.model_copy(update=dear)
    await budget(stage, project, 100)
    tokens = row.expected_tokens

    async def ask(*training: int) -> None:
        async with stage.resources.database.tenant(project) as session:
            await require_unreserved(session, settings, ("weft-tiny", training[0]) if training else None)

    await ask()
    await ask(tokens)
    with pytest.raises(RateLimited, match=r"0\.49 set aside .* would take about 0\.98") as refused:
        await ask(2 * tokens)
    assert refused.value.code == "insufficient_quota"
    await budget(stage, project, 49)
    with pytest.raises(RateLimited, match="set aside"):
        await ask()
    async with stage.resources.database.tenant(project) as session:
        await require_budget(session, settings)
        await lifecycle.cancel(session, job)
    await ask()


async def test_of_jobs_created_at_once_none_passes_the_budget(stage: Stage) -> None:
    project = await stage.project()
    file = await stage.file(project, examples=20_000)
    request = CreateJob.model_validate(
        {"model": "weft-tiny", "training_file": file, "hyperparameters": {"n_epochs": 1}}
    )

    async def create_one() -> int:
        try:
            async with stage.resources.database.tenant(project) as session:
                return (await create(session, stage.resources, request)).expected_tokens
        except RateLimited:
            return 0

    cents = await create_one() * 3 / 10_000
    await budget(stage, project, int(cents * 3.5))
    made = await asyncio.gather(*(create_one() for _ in range(8)))
    assert sum(tokens > 0 for tokens in made) == 2


async def test_a_job_is_in_the_audit_log(stage: Stage) -> None:
    project = await stage.project()
    job = await stage.job(project)
    query = "select type, actor from audit_logs where project_id = :project and subject = :job"
    assert await stage.rows(query, project=project, job=job) == [("fine_tuning.job.created", {"type": "service"})]
