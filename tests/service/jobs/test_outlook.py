"""When jobs will be done and what they wait for: from their own pace, past jobs, and who is there to train."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from service.contracts.ids import JobId, ProjectId
from service.contracts.worker import Lease
from service.jobs import lifecycle, pace
from service.jobs.models import JobRow
from service.jobs.outlook import Outlook, outlooks
from service.settings import ServiceSettings
from tests.service.stage import Stage, open_stage


@pytest_asyncio.fixture(scope="module")
async def stage(service_settings: ServiceSettings) -> AsyncIterator[Stage]:
    async with open_stage(service_settings) as made:
        yield made


@pytest_asyncio.fixture(autouse=True)
async def _nothing_known(stage: Stage) -> None:
    """No jobs, no workers and nothing learned of them."""
    await stage.rows("update jobs set status = 'cancelled' where status in ('queued', 'running') returning id")
    await stage.rows("update jobs set leased_seconds = 0 returning id")
    await stage.rows("delete from workers returning name")


async def seen(stage: Stage, project: ProjectId, jobs: Sequence[str]) -> list[Outlook]:
    async with stage.resources.database.tenant(project) as session:
        rows: list[JobRow] = [await lifecycle.find(session, job) for job in jobs]
        found = await outlooks(session, stage.resources, rows)
    return [found[job] for job in jobs]


async def one(stage: Stage, project: ProjectId, job: str) -> Outlook:
    return (await seen(stage, project, [job]))[0]


async def past_jobs(stage: Stage, *seconds: float, tokens: int = 1000) -> None:
    """Jobs that have succeeded, each after so many seconds at work."""
    project = await stage.project(max_running_jobs=10)
    for each in seconds:
        await stage.job(project)
        lease = await stage.claimed()
        earlier = "update jobs set leased_at = now() - make_interval(secs => :s) where id = :job returning id"
        await stage.rows(earlier, s=each, job=lease.spec.job_id)
        await stage.succeed(lease, tokens=tokens)
    async with stage.resources.database.control() as session:
        await pace.learn(session, stage.resources)


async def trained(stage: Stage, lease: Lease, step: int, ago: float) -> None:
    """`step` steps of 100, the first report of which is `ago` seconds old."""
    await stage.report(lease, step=0)
    await stage.report(lease, step=step)
    earlier = "update jobs set pace_since = now() - make_interval(secs => :s) where id = :job returning id"
    await stage.rows(earlier, s=ago, job=lease.spec.job_id)


async def test_a_running_jobs_end_follows_from_its_own_steps(stage: Stage) -> None:
    project = await stage.project()
    job = await stage.job(project)
    lease = await stage.claimed()
    assert await one(stage, project, job) == Outlook()
    await trained(stage, lease, step=20, ago=40)
    finish = (await one(stage, project, job)).estimated_finish
    assert finish is not None
    assert finish.timestamp() == pytest.approx(time.time() + 160, abs=5)

    async with stage.resources.database.tenant(project) as session:
        await lifecycle.pause(session, job)
    assert (await one(stage, project, job)).estimated_finish is None, "it is about to pause"
    await stage.finish(lease, outcome="paused")
    assert await one(stage, project, job) == Outlook(blocked_by="paused")


async def test_a_new_lease_has_a_pace_of_its_own(stage: Stage) -> None:
    project = await stage.project()
    job = await stage.job(project)
    lease = await stage.claimed()
    await trained(stage, lease, step=50, ago=1000)
    await stage.checkpoint(lease, step=50)
    await stage.finish(lease, outcome="released")
    lease = await stage.claimed()
    assert (await one(stage, project, job)).estimated_finish is None
    await stage.report(lease, step=50)
    await stage.report(lease, step=60)
    earlier = "update jobs set pace_since = now() - interval '10 s' where id = :job returning id"
    await stage.rows(earlier, job=job)
    finish = (await one(stage, project, job)).estimated_finish
    assert finish is not None
    assert finish.timestamp() == pytest.approx(time.time() + 40, abs=5)


async def test_what_a_queued_job_waits_for(stage: Stage) -> None:
    project = await stage.project(max_running_jobs=1)
    jobs = await stage.jobs(project, count=3)
    assert [each.blocked_by for each in await seen(stage, project, jobs)] == ["base_unavailable"] * 3
    lease = await stage.claimed()
    waiting = [job for job in jobs if job != lease.spec.job_id]
    assert [each.blocked_by for each in await seen(stage, project, waiting)] == ["tenant_limit"] * 2
    assert sorted(each.queue_position or 0 for each in await seen(stage, project, waiting)) == [1, 2]
    await stage.rows("update projects set max_running_jobs = 5 where id = :p returning id", p=project)
    assert [each.blocked_by for each in await seen(stage, project, waiting)] == ["capacity"] * 2
    await stage.rows("update jobs set not_before = now() + interval '1 min' where id = :j returning id", j=waiting[0])
    assert (await one(stage, project, waiting[0])).blocked_by == "retry_delay"
    await stage.rows("update workers set seen_at = now() - interval '2 min' returning name")
    assert (await one(stage, project, waiting[1])).blocked_by == "base_unavailable"


async def test_a_worker_whose_hands_are_full_is_there(stage: Stage) -> None:
    project = await stage.project(max_running_jobs=1)
    jobs = await stage.jobs(project, count=2)
    lease = await stage.claimed()
    (waiting,) = (job for job in jobs if job != lease.spec.job_id)
    await stage.rows("update workers set seen_at = now() - interval '2 min' returning name")
    async with stage.resources.database.control() as session:
        await pace.learn(session, stage.resources)
    assert (await one(stage, project, waiting)).blocked_by == "tenant_limit"


async def test_places_follow_priority_and_age_within_the_own_project(stage: Stage) -> None:
    project, other = await stage.project(), await stage.project()
    first, second = await stage.job(project), await stage.job(project)
    await stage.jobs(other, count=3)
    assert [each.queue_position for each in await seen(stage, project, [first, second])] == [1, 2]
    await stage.rows("update jobs set priority = 1 where id = :job returning id", job=second)
    assert [each.queue_position for each in await seen(stage, project, [first, second])] == [2, 1]


async def test_a_queued_jobs_end_follows_from_past_jobs_and_the_work_ahead(stage: Stage) -> None:
    await past_jobs(stage, 10, 20, 30)
    project = await stage.project(max_running_jobs=1)
    jobs: list[JobId] = await stage.jobs(project, count=3)
    running = (await stage.claimed()).spec.job_id
    waiting = [job for job in jobs if job != running]
    row = await stage.row(waiting[0])
    per_job = row.expected_tokens * 20 / 1000
    finishes: list[Any] = [each.estimated_finish for each in await seen(stage, project, waiting)]
    expected = sorted(time.time() + count * per_job for count in (1, 2))
    assert sorted(each.timestamp() for each in finishes) == pytest.approx(expected, abs=2)


async def test_two_past_jobs_tell_nothing(stage: Stage) -> None:
    before = await stage.rows("select * from paces")
    await past_jobs(stage, 10, 20)
    assert await stage.rows("select * from paces") == before


async def test_a_page_takes_three_queries(stage: Stage) -> None:
    project = await stage.project()
    jobs = await stage.jobs(project, count=20)
    async with stage.resources.database.tenant(project) as session:
        rows = [await lifecycle.find(session, job) for job in jobs]
        asked: list[Any] = []
        execute = session.execute

        async def counted(*args: Any, **kwargs: Any) -> Any:
            asked.append(args)
            return await execute(*args, **kwargs)

        session.execute = counted  # type: ignore[method-assign]
        await outlooks(session, stage.resources, rows)
    assert 1 <= len(asked) <= 3
