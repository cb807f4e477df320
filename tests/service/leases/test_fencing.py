"""A worker whose epoch no longer holds the job is refused on every call and changes nothing."""

from collections.abc import Awaitable, Callable, Sequence

import pytest

from service.contracts.worker import (
    CheckpointDone,
    Control,
    Event,
    Lease,
    RenewRequest,
    UploadRequest,
)
from service.errors import LeaseLost
from service.leases import checkpoints, reap, report, uploads
from tests.service.stage import Stage

Move = Callable[[Stage, Lease], Awaitable[object]]


async def _renew(stage: Stage, lease: Lease) -> Control:
    return await report.renew(stage.resources, lease.spec.job_id, RenewRequest(epoch=lease.epoch))


async def _report(stage: Stage, lease: Lease) -> Control:
    event = Event(id="ftevent-zombie", message="from the zombie")
    return await stage.report(lease, step=99, tokens=99_999, events=(event,))


async def _ask_for_uploads(stage: Stage, lease: Lease) -> object:
    manifest = await stage.upload_checkpoint(lease, step=90)
    request = UploadRequest(epoch=lease.epoch, kind="checkpoint", checkpoint=manifest)
    return await uploads.targets(stage.resources, lease.spec.job_id, request)


async def _checkpoint(stage: Stage, lease: Lease) -> Control:
    return await stage.checkpoint(lease, step=90)


async def _succeed(stage: Stage, lease: Lease) -> object:
    return await stage.succeed(lease)


async def _fail(stage: Stage, lease: Lease) -> object:
    return await stage.finish(lease, outcome="failed", failure={"code": "out_of_memory", "message": "zombie"})


async def _cancel(stage: Stage, lease: Lease) -> object:
    return await stage.finish(lease, outcome="cancelled")


async def _pause(stage: Stage, lease: Lease) -> object:
    return await stage.finish(lease, outcome="paused")


async def _release(stage: Stage, lease: Lease) -> object:
    return await stage.finish(lease, outcome="released")


EVERY_CALL: list[Move] = [_renew, _report, _ask_for_uploads, _checkpoint, _succeed, _fail, _cancel, _pause, _release]


@pytest.mark.parametrize("move", EVERY_CALL)
async def test_a_zombie_is_refused_while_the_next_worker_holds_the_job(stage: Stage, move: Move) -> None:
    job = await stage.job(await stage.project())
    zombie = await stage.claimed()
    await stage.expire(job)
    await reap.reap(stage.resources)
    holder = await stage.claimed()
    assert (holder.spec.job_id, holder.epoch) == (job, 2)
    before = await _everything(stage, job)

    with pytest.raises(LeaseLost):
        await move(stage, zombie)

    assert await _everything(stage, job) == before
    await stage.succeed(holder)
    with pytest.raises(LeaseLost):
        await move(stage, zombie)
    assert (await stage.row(job)).status == "succeeded"


@pytest.mark.parametrize("move", [_renew, _report, _ask_for_uploads, _checkpoint, _succeed, _fail, _cancel])
async def test_a_reaped_worker_is_refused_before_anyone_else_has_the_job(stage: Stage, move: Move) -> None:
    job = await stage.job(await stage.project())
    zombie = await stage.claimed()
    await stage.expire(job)
    await reap.reap(stage.resources)
    before = await _everything(stage, job)

    with pytest.raises(LeaseLost):
        await move(stage, zombie)

    assert await _everything(stage, job) == before
    await stage.finish(await stage.claimed(), outcome="cancelled")


async def test_a_late_worker_that_was_not_reaped_yet_goes_on(stage: Stage) -> None:
    job = await stage.job(await stage.project())
    lease = await stage.claimed()
    await stage.expire(job)
    assert (await _renew(stage, lease)).want == "run"
    assert await reap.reap(stage.resources) == []
    await stage.finish(lease, outcome="cancelled")


async def test_a_replayed_step_shows_once_and_with_the_newer_numbers(stage: Stage) -> None:
    job = await stage.job(await stage.project())
    first = await stage.claimed()
    await stage.report(first, step=1, events=(_metrics(0.9), _metrics(0.8)))
    await stage.expire(job)
    await reap.reap(stage.resources)
    second = await stage.claimed()
    await stage.report(second, step=1, events=(_metrics(0.5),))
    await stage.report(second, step=1, events=(_metrics(0.5),))

    rows = await stage.rows("select epoch, data from job_events where job_id = :job and type = 'metrics'", job=job)

    assert [(row.epoch, row.data) for row in rows] == [(2, {"train_loss": 0.5})]
    await stage.finish(second, outcome="cancelled")


async def test_what_postgresql_cannot_hold_is_made_storable(stage: Stage) -> None:
    job = await stage.job(await stage.project())
    lease = await stage.claimed()
    event = Event(
        id="ftevent-odd",
        message="line 3: \0",
        data={"loss": float("nan"), "deep": [{"k\0": float("inf"), "s": "\ud800"}]},
    )
    await stage.report(lease, events=(event,))
    rows = await stage.rows("select message, data from job_events where job_id = :job and id = 'ftevent-odd'", job=job)
    assert [tuple(row) for row in rows] == [("line 3: \ufffd", {"loss": None, "deep": [{"k\ufffd": None, "s": "?"}]})]
    await stage.finish(lease, outcome="failed", failure={"code": "x\0", "message": "bad \0 byte"})
    assert (await stage.row(job)).error == {"code": "x\ufffd", "message": "bad \ufffd byte", "param": None}


async def test_a_late_report_sets_nothing_back_and_repeated_work_is_not_charged_twice(stage: Stage) -> None:
    project = await stage.project(weight=2)
    job = await stage.job(project)
    lease = await stage.claimed()
    start = await _virtual_time(stage, project)
    await stage.report(lease, step=8, tokens=800)
    await stage.report(lease, step=5, tokens=500)
    row = await stage.row(job)
    assert (row.step, row.trained_tokens, row.metered_tokens) == (8, 800, 800)
    assert await _virtual_time(stage, project) == start + 400
    await stage.report(lease, step=9, tokens=900)
    assert await _virtual_time(stage, project) == start + 450
    await stage.finish(lease, outcome="cancelled")


@pytest.mark.parametrize("change", [{"job_id": "ftjob-other"}, {"epoch": 7}])
async def test_a_checkpoint_of_another_job_or_epoch_is_refused(stage: Stage, change: dict[str, object]) -> None:
    await stage.job(await stage.project())
    lease = await stage.claimed()
    manifest = (await stage.upload_checkpoint(lease, step=1)).model_copy(update=change)
    request = CheckpointDone(epoch=lease.epoch, manifest=manifest)
    with pytest.raises(Exception, match="another job or epoch"):
        await checkpoints.register(stage.resources, lease.spec.job_id, request)
    await stage.finish(lease, outcome="cancelled")


def _metrics(loss: float) -> Event:
    return Event(id="ftevent-step-1", type="metrics", message="Step 1", data={"train_loss": loss})


async def _virtual_time(stage: Stage, project: str) -> float:
    return (await stage.rows("select virtual_time from projects where id = :project", project=project))[0][0]


async def _everything(stage: Stage, job: str) -> Sequence[object]:
    """All that the database says about a job."""
    tables = {"jobs": "id", "job_events": "job_id", "adapters": "job_id", "models": "job_id"}
    return [
        [
            tuple(row)
            for row in await stage.rows(f"select * from {table} where {column} = :job order by 1, 2, 3", job=job)
        ]
        for table, column in tables.items()
    ] + [await stage.rows("select count(*), sum(trained_tokens) from usage")]
