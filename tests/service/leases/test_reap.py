"""What becomes of jobs whose worker fell silent."""

import asyncio
import dataclasses
import time

import pytest

from deploy.local.postgres import Postgres
from service.contracts.layout import job_prefix
from service.db import DatabaseUnavailable
from service.jobs import lifecycle
from service.leases import reap
from tests.service.stage import Stage


async def _lose(stage: Stage, job: str) -> None:
    """One worker takes the job and is never heard of again."""
    await stage.forward(job)
    lease = await stage.claimed()
    assert lease.spec.job_id == job
    await stage.expire(job)
    await reap.reap(stage.resources)


async def test_an_expired_lease_queues_the_job_and_says_so(stage: Stage) -> None:
    job = await stage.job(await stage.project())
    await _lose(stage, job)
    row = await stage.row(job)
    assert (row.status, row.epoch, row.lost_workers, row.lease_owner) == ("queued", 1, 1, None)
    events = await stage.rows("select level, data from job_events where job_id = :job order by seq desc", job=job)
    assert events[0].level == "warn"
    assert events[0].data == {"reason": "worker_lost", "worker": "worker", "lost_workers": 1, "resumes_at_step": 0}
    await _end(stage, job)


async def test_a_lease_that_is_renewed_is_not_reaped(stage: Stage) -> None:
    job = await stage.job(await stage.project())
    lease = await stage.claimed()
    await stage.report(lease)
    assert await reap.reap(stage.resources) == []
    assert (await stage.row(job)).status == "running"
    await _end(stage, job)


async def test_a_silent_worker_loses_its_job_after_the_ttl_by_the_database_clock(stage: Stage) -> None:
    job = await stage.job(await stage.project())
    await stage.claimed()
    ttl = stage.resources.settings.lease_ttl_seconds
    left = await stage.rows("select extract(epoch from lease_until - now()) from jobs where id = :job", job=job)
    assert ttl - 1 < left[0][0] <= ttl
    await _until_queued(stage, job, seconds=ttl + 10, reaping=True)
    await _end(stage, job)


async def test_three_losses_without_a_newer_checkpoint_fail_the_job(stage: Stage) -> None:
    job = await stage.job(await stage.project())
    for _ in range(stage.resources.settings.max_lost_workers):
        assert (await stage.row(job)).status == "queued"
        await _lose(stage, job)
    row = await stage.row(job)
    assert row.status == "failed"
    assert row.error is not None
    assert row.error["code"] == "worker_lost"


async def test_checkpoints_of_a_job_that_the_reaper_ended_are_deleted(stage: Stage) -> None:
    project = await stage.project()
    job = await stage.job(project)
    await stage.checkpoint(await stage.claimed(), step=1)
    async with stage.resources.database.tenant(project) as session:
        await lifecycle.cancel(session, job)
    await stage.expire(job)
    reaper = asyncio.create_task(reap.run(stage.resources))
    try:
        deadline = time.monotonic() + 20
        while await stage.keys(job_prefix(project, job)):
            assert time.monotonic() < deadline, "the checkpoint is still there"
            await asyncio.sleep(0.05)
    finally:
        reaper.cancel()
        await asyncio.gather(reaper, return_exceptions=True)
    assert (await stage.row(job)).status == "cancelled"


async def test_progress_starts_the_count_anew(stage: Stage) -> None:
    job = await stage.job(await stage.project())
    for step in range(1, 5):
        await stage.forward(job)
        lease = await stage.claimed()
        await stage.checkpoint(lease, step=step)
        await stage.expire(job)
        await reap.reap(stage.resources)
        row = await stage.row(job)
        assert (row.status, row.lost_workers) == ("queued", 1)
    await _lose(stage, job)
    await _lose(stage, job)
    assert (await stage.row(job)).status == "failed"


async def test_a_job_that_keeps_losing_workers_waits_longer_each_time(stage: Stage) -> None:
    job = await stage.job(await stage.project())
    await _lose(stage, job)
    await _lose(stage, job)
    assert await stage.claim() is None
    await stage.forward(job)
    assert await stage.claim() is not None
    await _end(stage, job)


async def test_a_lost_worker_of_a_cancelled_or_paused_job_does_what_was_wanted(stage: Stage) -> None:
    project = await stage.project()
    for ask, status in ((lifecycle.cancel, "cancelled"), (lifecycle.pause, "paused")):
        job = await stage.job(project)
        await stage.claimed()
        async with stage.resources.database.tenant(project) as session:
            await ask(session, job)
        await stage.expire(job)
        await reap.reap(stage.resources)
        assert (await stage.row(job)).status == status
        assert await stage.claim() is None


async def test_many_reapers_at_once_take_each_job_back_once(stage: Stage) -> None:
    jobs = await stage.jobs(await stage.project(max_running_jobs=60), 60)
    for _ in jobs:
        await stage.claimed()
    await stage.rows("update jobs set lease_until = now() - interval '1 s' where status = 'running' returning id")
    taken = await asyncio.gather(*(reap.reap(stage.resources) for _ in range(4)))
    assert sorted(row.id for rows in taken for row in rows) == sorted(jobs)
    assert {(await stage.row(job)).lost_workers for job in jobs} == {1}
    for job in jobs:
        await _end(stage, job)


async def test_a_reaper_outlives_an_outage_of_the_database(
    stage: Stage, postgres_server: Postgres, database_name: str
) -> None:
    settings = stage.resources.settings.model_copy(update={"reap_seconds": 0.05})
    job = await stage.job(await stage.project())
    await stage.claimed()
    owner = await postgres_server.connect("postgres", "postgres")
    reaper = asyncio.create_task(reap.run(dataclasses.replace(stage.resources, settings=settings)))
    try:
        await owner.execute(f'alter database "{database_name}" allow_connections false')
        await owner.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", database_name)
        with pytest.raises(DatabaseUnavailable):
            await reap.reap(stage.resources)
        await asyncio.sleep(0.3)
        await owner.execute(f'alter database "{database_name}" allow_connections true')
        await stage.expire(job)
        await _until_queued(stage, job, seconds=20, reaping=False)
        assert not reaper.done()
    finally:
        await owner.execute(f'alter database "{database_name}" allow_connections true')
        await owner.close()
        reaper.cancel()
        await asyncio.gather(reaper, return_exceptions=True)


async def _until_queued(stage: Stage, job: str, *, seconds: float, reaping: bool) -> None:
    deadline = time.monotonic() + seconds
    while (await stage.row(job)).status != "queued":
        assert time.monotonic() < deadline, f"{job} was not taken back within {seconds} s"
        await asyncio.sleep(0.05)
        if reaping:
            await reap.reap(stage.resources)


async def _end(stage: Stage, job: str) -> None:
    await stage.rows("update jobs set status = 'cancelled' where id = :job returning id", job=job)
