"""Whose turn it is: shares follow weights, idling saves nothing up, and no tenant can starve another."""

import random
from collections import Counter

import pytest

from service.contracts.ids import ProjectId
from service.contracts.worker import ClaimRequest
from service.jobs import lifecycle
from service.leases import reap
from service.leases.claim import claim_once
from service.leases.hold import meter
from tests.service.stage import Stage


async def _serve(stage: Stage, turns: int, dice: random.Random) -> Counter[str]:
    """Trains one job after the other, each of a random size; gives the tokens of each project."""
    tokens: Counter[str] = Counter()
    base = stage.resources.settings.base_models[0]
    request = ClaimRequest(worker="w", base_model=base.name, base_fingerprint=base.fingerprint)
    for _ in range(turns):
        size = dice.randint(80, 120)
        async with stage.resources.database.control() as session:
            claimed = await claim_once(session, request, 30)
            assert claimed is not None
            await meter(session, claimed.job, size)
            await lifecycle.fail(session, claimed.job, "test", "enough")
        tokens[claimed.job.project_id] += size
    return tokens


async def test_shares_follow_the_weights(stage: Stage) -> None:
    weights = {await stage.project(weight=weight): weight for weight in (1, 2, 3)}
    for project in weights:
        await stage.jobs(project, 60)
    tokens = await _serve(stage, 100, random.Random(1))
    for project, weight in weights.items():
        assert tokens[project] / tokens.total() == pytest.approx(weight / 6, rel=0.1)
    await _clear(stage)


async def test_an_idle_project_saves_up_no_credit(stage: Stage) -> None:
    """Two tenants: one trains alone for long, then the other comes; from there on they share alike."""
    diligent, idle = await stage.project(), await stage.project()
    await stage.jobs(diligent, 60)
    await _serve(stage, 30, random.Random(2))
    await stage.jobs(idle, 30)
    tokens = await _serve(stage, 30, random.Random(3))
    assert tokens[idle] / tokens.total() == pytest.approx(0.5, rel=0.15)
    await _clear(stage)


async def test_a_project_that_was_alone_is_not_punished_when_it_comes_back(stage: Stage) -> None:
    first, second = await stage.project(), await stage.project()
    await stage.jobs(first, 20)
    await _serve(stage, 20, random.Random(4))
    await reap.reap(stage.resources)
    assert not await _busy(stage, first)
    await stage.jobs(second, 40)
    await _serve(stage, 10, random.Random(5))
    await stage.jobs(first, 40)
    tokens = await _serve(stage, 30, random.Random(6))
    assert tokens[first] / tokens.total() == pytest.approx(0.5, rel=0.15)
    await _clear(stage)


async def test_a_flood_of_jobs_does_not_delay_another_tenants_first_job(stage: Stage) -> None:
    flood, small = await stage.project(), await stage.project()
    await stage.jobs(flood, 200)
    await _serve(stage, 5, random.Random(7))
    job = await stage.job(small)
    served = [await stage.claimed() for _ in range(2)]
    assert job in {lease.spec.job_id for lease in served}
    await _clear(stage)


async def test_an_archived_project_is_not_served(stage: Stage) -> None:
    project = await stage.project()
    await stage.job(project)
    await stage.rows("update projects set status = 'archived' where id = :p returning id", p=project)
    assert await stage.claim() is None
    await _clear(stage)


async def _busy(stage: Stage, project: ProjectId) -> bool:
    return (await stage.rows("select busy from projects where id = :p", p=project))[0][0]


async def _clear(stage: Stage) -> None:
    await stage.rows("update jobs set status = 'cancelled' where status in ('queued', 'running') returning id")
    await reap.reap(stage.resources)
