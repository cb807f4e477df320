"""Who gets which job, and what a lease carries."""

import asyncio
import time
import urllib.request
from datetime import timedelta

import pytest

from service.contracts.worker import ClaimRequest, Lease
from service.errors import LeaseLost
from service.files.lookup import delete_file
from service.files.sweep import sweep
from service.jobs import lifecycle
from service.leases import claim, fairness, reap
from tests.service.stage import LINE, Stage


async def test_a_claim_carries_the_whole_job_and_readable_files(stage: Stage) -> None:
    project = await stage.project()
    validation = await stage.file(project, examples=12)
    job = await stage.job(project, validation_file=validation, seed=7)

    lease = await stage.claimed()

    assert (lease.spec.job_id, lease.spec.project_id, lease.spec.seed, lease.epoch) == (job, project, 7, 1)
    assert lease.checkpoint is None
    assert await asyncio.to_thread(_read, lease.training_file.url) == LINE * 20
    assert lease.validation_file is not None
    assert await asyncio.to_thread(_read, lease.validation_file.url) == LINE * 12
    row = await stage.row(job)
    assert (row.status, row.phase, row.lease_owner) == ("running", "preparing", "worker")
    assert row.started_at is not None
    await stage.finish(lease, outcome="cancelled")


async def test_nothing_to_do_is_none_at_once_and_after_the_wait(stage: Stage) -> None:
    assert await stage.claim() is None
    assert await stage.claim(wait_seconds=0.5) is None


async def test_a_waiting_claim_gets_a_job_that_arrives_meanwhile(stage: Stage) -> None:
    waiting = asyncio.create_task(stage.claim(wait_seconds=10))
    job = await stage.job(await stage.project())
    lease = await waiting
    assert lease is not None
    assert lease.spec.job_id == job
    await stage.finish(lease, outcome="cancelled")


async def test_a_worker_that_hung_up_is_given_nothing(stage: Stage) -> None:
    base = stage.resources.settings.base_models[0]
    request = ClaimRequest(worker="w", base_model=base.name, base_fingerprint=base.fingerprint, wait_seconds=10)

    async def gone() -> bool:
        return True

    assert await asyncio.wait_for(claim.claim(stage.resources, request, gone), 5) is None


async def test_jobs_of_another_base_or_fingerprint_are_left_alone(stage: Stage) -> None:
    job = await stage.job(await stage.project())
    base = stage.resources.settings.base_models[0]
    for name, fingerprint in (("other", base.fingerprint), (base.name, "0" * 64)):
        request = ClaimRequest(worker="w", base_model=name, base_fingerprint=fingerprint)
        async with stage.resources.database.control() as session:
            assert await claim.claim_once(session, request, 30) is None
    lease = await stage.claimed()
    assert lease.spec.job_id == job
    await stage.finish(lease, outcome="cancelled")


async def test_priority_goes_before_age_and_age_before_the_rest(stage: Stage) -> None:
    project = await stage.project()
    first, second, urgent = [await stage.job(project) for _ in range(3)]
    await stage.rows("update jobs set priority = 5 where id = :job returning id", job=urgent)
    leases = [await stage.claimed() for _ in range(3)]
    assert [lease.spec.job_id for lease in leases] == [urgent, first, second]
    for lease in leases:
        await stage.finish(lease, outcome="cancelled")


async def test_the_cap_holds_when_many_claim_at_once(stage: Stage) -> None:
    project = await stage.project(max_running_jobs=3)
    await stage.jobs(project, 12)
    leases: list[Lease] = []
    deadline = time.monotonic() + 20
    while len(leases) < 3 and time.monotonic() < deadline:
        leases += [lease for lease in await asyncio.gather(*(stage.claim() for _ in range(10))) if lease]
    assert len(leases) == 3
    assert [lease for lease in await asyncio.gather(*(stage.claim() for _ in range(10))) if lease] == []
    assert len({lease.spec.job_id for lease in leases}) == 3
    await stage.finish(leases[0], outcome="released")
    assert await stage.claim() is not None
    await _clear(stage)


async def test_the_cap_is_checked_again_under_the_projects_lock(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two claims may both have seen room; here the look at the projects is outdated every time."""
    project = await stage.project(max_running_jobs=1)
    await stage.jobs(project, 2)
    await stage.claimed()

    async def outdated(*_: object) -> str:
        return project

    monkeypatch.setattr(fairness, "next_project", outdated)
    assert await stage.claim() is None
    await _clear(stage)


async def test_a_project_that_may_run_nothing_waits_and_blocks_nobody(stage: Stage) -> None:
    idle, active = await stage.project(max_running_jobs=0), await stage.project()
    await stage.job(idle)
    job = await stage.job(active)
    assert (await stage.claimed()).spec.job_id == job
    assert await stage.claim() is None
    await _clear(stage)


async def test_a_file_deleted_while_its_job_waits_still_serves_the_job(stage: Stage) -> None:
    project = await stage.project()
    job = await stage.job(project)
    async with stage.resources.database.tenant(project) as session:
        await delete_file(session, (await stage.row(job)).training_file)
    await sweep(stage.resources, timedelta(0))
    lease = await stage.claimed()
    assert await asyncio.to_thread(_read, lease.training_file.url) == LINE * 20
    await _clear(stage)


async def test_resuming_starts_from_the_last_checkpoint(stage: Stage) -> None:
    job = await stage.job(await stage.project())
    lease = await stage.claimed()
    await stage.report(lease, step=9, tokens=900)
    await stage.checkpoint(lease, step=5, tokens=500)
    await stage.expire(job)
    assert [row.id for row in await reap.reap(stage.resources)] == [job]

    again = await stage.claimed()

    assert (again.spec.job_id, again.epoch) == (job, 2)
    assert again.checkpoint is not None
    assert (again.checkpoint.manifest.step, again.checkpoint.manifest.epoch) == (5, 1)
    body = await asyncio.to_thread(_read, again.checkpoint.urls["state.safetensors"])
    assert body == b"state 5 of 1"
    row = await stage.row(job)
    assert (row.step, row.trained_tokens, row.metered_tokens) == (5, 500, 900)
    await _clear(stage)


async def test_a_cancelled_job_is_never_claimed(stage: Stage) -> None:
    project = await stage.project()
    job = await stage.job(project)
    async with stage.resources.database.tenant(project) as session:
        assert (await lifecycle.cancel(session, job)).status == "cancelled"
    assert await stage.claim() is None


async def test_an_unknown_job_is_a_lost_lease(stage: Stage) -> None:
    job = await stage.job(await stage.project())
    lease = await stage.claimed()
    other = lease.model_copy(update={"spec": lease.spec.model_copy(update={"job_id": job[::-1]})})
    with pytest.raises(LeaseLost):
        await stage.report(other)
    await _clear(stage)


async def _clear(stage: Stage) -> None:
    """Leaves no work behind for the module's next test."""
    await stage.rows("update jobs set status = 'cancelled' where status in ('queued', 'running') returning id")


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read()
