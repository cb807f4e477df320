"""Adapters published while their job runs: fenced, complete or refused, once per step, and only as many as are kept."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from service.adapters import registry, removal
from service.contracts.ids import ProjectId
from service.contracts.layout import adapter_prefix
from service.contracts.manifest import ADAPTER_WEIGHTS, AdapterManifest, adapter_id_of
from service.contracts.worker import CheckpointMetrics, CheckpointModel, Lease
from service.errors import InvalidRequest, LeaseLost
from service.jobs import names
from service.leases import checkpoint_models, reap, uploads
from tests.service.stage import Stage


async def running(stage: Stage) -> tuple[ProjectId, Lease]:
    project = await stage.project()
    await stage.job(project)
    return project, await stage.claimed()


async def live(stage: Stage, lease: Lease) -> list[int]:
    """The steps of the job's checkpoint models that can be used."""
    query = "select step from models where job_id = :job and kind = 'checkpoint' and deleted_at is null order by step"
    return [row.step for row in await stage.rows(query, job=lease.spec.job_id)]


async def register(stage: Stage, lease: Lease, manifest: AdapterManifest, **fields: Any) -> None:
    metrics = CheckpointMetrics(step=fields.pop("step", manifest.step), **fields)
    request = CheckpointModel(epoch=lease.epoch, adapter=manifest, metrics=metrics)
    await checkpoint_models.register(stage.resources, lease.spec.job_id, request)


async def next_epoch(stage: Stage, lease: Lease) -> Lease:
    """The worker is lost, and another one has the job."""
    await stage.expire(lease.spec.job_id)
    await reap.reap(stage.resources)
    await stage.forward(lease.spec.job_id)
    again = await stage.claimed()
    assert again.spec.job_id == lease.spec.job_id
    return again


async def stored(stage: Stage, project: ProjectId, manifest: AdapterManifest) -> bool:
    return await stage.keys(adapter_prefix(project, adapter_id_of(manifest))) != []


async def test_a_repeated_call_changes_nothing(stage: Stage) -> None:
    _, lease = await running(stage)
    manifest = await stage.checkpoint_model(lease, step=5)
    before = await _rows(stage, lease)
    await asyncio.gather(*(register(stage, lease, manifest, train_loss=0.5) for _ in range(5)))
    assert await _rows(stage, lease) == before
    messages = await stage.messages(lease.spec.job_id)
    assert messages.count("Checkpoint created at step 5") == 1
    await stage.finish(lease, outcome="cancelled")


async def test_a_lost_worker_publishes_nothing(stage: Stage) -> None:
    _, lease = await running(stage)
    manifest = await stage.uploaded_adapter(lease, step=5)
    holder = await next_epoch(stage, lease)
    before = await _rows(stage, lease)
    with pytest.raises(LeaseLost):
        await register(stage, lease, manifest)
    assert await _rows(stage, lease) == before
    await stage.finish(holder, outcome="cancelled")
    with pytest.raises(LeaseLost):
        await register(stage, holder, manifest)


@pytest.mark.parametrize("same", [True, False], ids=["same content", "other content"])
async def test_a_step_trained_again_replaces_its_model(stage: Stage, same: bool) -> None:
    project, lease = await running(stage)
    first = await stage.checkpoint_model(lease, step=5, loss=2.0)
    (old,) = await _rows(stage, lease)
    again = await next_epoch(stage, lease)
    second = await stage.checkpoint_model(again, step=5, loss=1.0, weights=None if same else b"others")
    (new,) = await _rows(stage, lease)
    assert (new.name, new.checkpoint_id) == (old.name, old.checkpoint_id)
    assert (new.adapter_id, new.metrics["full_valid_loss"]) == (adapter_id_of(second), 1.0)
    assert (first == second) is same
    async with stage.resources.database.control() as session:
        assert (await registry.find_adapter(session, adapter_id_of(first)) is not None) is same
    await stage.finish(again, outcome="cancelled")
    assert await stored(stage, project, second)
    assert await stored(stage, project, first) is same, "what was replaced is gone when the job is over"


async def test_the_newest_three_and_the_best_stay(stage: Stage) -> None:
    project, lease = await running(stage)
    losses = {1: 3.0, 2: 1.0, 3: 1.0, 4: 2.0, 5: float("nan"), 6: 2.5, 7: None}
    manifests = {step: await stage.checkpoint_model(lease, step=step, loss=loss) for step, loss in losses.items()}
    assert await live(stage, lease) == [2, 5, 6, 7]
    for step in (1, 3, 4):
        async with stage.resources.database.control() as session:
            assert await registry.find_adapter(session, adapter_id_of(manifests[step])) is None
    await stage.finish(lease, outcome="cancelled")
    kept = {step for step, manifest in manifests.items() if await stored(stage, project, manifest)}
    assert kept == {2, 5, 6, 7}


async def test_without_validation_the_newest_three_stay(stage: Stage) -> None:
    _, lease = await running(stage)
    for step in range(1, 6):
        await stage.checkpoint_model(lease, step=step)
    assert await live(stage, lease) == [3, 4, 5]
    await stage.finish(lease, outcome="cancelled")


async def test_a_name_that_has_ended_does_not_come_back(stage: Stage) -> None:
    project, lease = await running(stage)
    for step in (1, 2):
        await stage.checkpoint_model(lease, step=step)
    (first, _) = await _rows(stage, lease)
    async with stage.resources.database.tenant(project) as session:
        await registry.retire(session, project, first.name)
    again = await next_epoch(stage, lease)
    for step in (1, 2):
        await stage.checkpoint_model(again, step=step)
    assert await live(stage, lease) == [2]
    assert (await stage.messages(lease.spec.job_id)).count("Checkpoint created at step 1") == 1
    await stage.finish(again, outcome="cancelled")


@pytest.mark.parametrize("damage", ["weights missing", "another step", "another job"])
async def test_what_is_not_complete_or_not_the_jobs_is_refused(stage: Stage, damage: str) -> None:
    _, lease = await running(stage)
    manifest, step = await stage.uploaded_adapter(lease, step=5), 5
    if damage == "weights missing":
        stage.resources.store.delete([uploads.adapter_folder(lease.spec, manifest) + ADAPTER_WEIGHTS])
    elif damage == "another step":
        step = 6
    else:
        manifest = manifest.model_copy(update={"job_id": "ftjob-other"})
    with pytest.raises(InvalidRequest) as refused:
        await register(stage, lease, manifest, step=step)
    assert refused.value.code == ("upload_incomplete" if damage == "weights missing" else "adapter_mismatch")
    assert await _rows(stage, lease) == []
    await stage.finish(lease, outcome="cancelled")


async def test_the_delivered_adapter_may_be_a_checkpoint_models(stage: Stage) -> None:
    """Two names, one adapter: each may be deleted without the other."""
    project, lease = await running(stage)
    for step in (10, 20):
        manifest = await stage.checkpoint_model(lease, step=step)
    finished = await stage.finish(lease, outcome="succeeded", adapter=manifest)
    assert finished == await stage.finish(lease, outcome="succeeded", adapter=manifest)
    assert finished.fine_tuned_model is not None
    final = finished.fine_tuned_model
    for name, left in ((f"{final}:ckpt-step-20", True), (final, False)):
        await removal.remove(stage.resources, project, name)
        assert await stored(stage, project, manifest) is left


async def test_a_deleted_checkpoint_models_adapter_can_still_be_delivered(stage: Stage) -> None:
    project, lease = await running(stage)
    manifest = await stage.checkpoint_model(lease, step=10)
    (row,) = await _rows(stage, lease)
    await removal.remove(stage.resources, project, row.name)
    await removal.sweep(stage.resources)
    assert await stored(stage, project, manifest), "its job may still deliver it"
    finished = await stage.finish(lease, outcome="succeeded", adapter=manifest)
    await removal.sweep(stage.resources)
    assert finished.fine_tuned_model is not None
    async with stage.resources.database.control() as session:
        found = await registry.find(session, project, finished.fine_tuned_model)
    assert found is not None
    assert found.adapter_id == adapter_id_of(manifest)
    assert await stored(stage, project, manifest)


async def test_deleting_races_delivering_and_neither_loses_the_adapter(stage: Stage) -> None:
    for _ in range(20):
        project, lease = await running(stage)
        manifest = await stage.checkpoint_model(lease, step=10)
        (row,) = await _rows(stage, lease)
        finished, _ = await asyncio.gather(
            stage.finish(lease, outcome="succeeded", adapter=manifest),
            removal.remove(stage.resources, project, row.name),
        )
        await removal.sweep(stage.resources, lease.spec.job_id)  # pyright: ignore[reportArgumentType]
        async with stage.resources.database.control() as session:
            assert await registry.find(session, project, finished.fine_tuned_model or "") is not None
        assert await stored(stage, project, manifest)


async def test_what_was_uploaded_and_never_published_goes_with_the_job(stage: Stage) -> None:
    project, lease = await running(stage)
    manifest = await stage.uploaded_adapter(lease, step=7)
    await removal.sweep(stage.resources)
    assert await stored(stage, project, manifest)
    await stage.finish(lease, outcome="failed", failure={"code": "x", "message": "y"})
    assert not await stored(stage, project, manifest)


async def test_a_cancel_after_the_last_upload_leaves_the_checkpoint_model_alone(stage: Stage) -> None:
    project, lease = await running(stage)
    manifest = await stage.checkpoint_model(lease, step=10)
    await stage.rows("update jobs set want = 'cancel' where id = :job returning id", job=lease.spec.job_id)
    assert (await stage.finish(lease, outcome="succeeded", adapter=manifest)).status == "cancelled"
    assert await stored(stage, project, manifest)
    assert await live(stage, lease) == [10]


async def test_a_name_that_is_taken_is_not_given_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken by another job's final model, by its first checkpoint, or by a model of before names were reserved."""
    drawn = iter(["ft:a", "ft:a", "ft:b", "ft:a", "ft:b", "ft:old", "ft:c"])
    monkeypatch.setattr(names, "fine_tuned_model_name", lambda *_: next(drawn))
    _, first = await running(stage)
    assert (await stage.succeed(first)).fine_tuned_model == "ft:a"
    _, second = await running(stage)
    await stage.checkpoint_model(second, step=1)
    _, third = await running(stage)
    old = """
        insert into models (name, project_id, adapter_id, job_id, kind)
        select 'ft:old', project_id, id, job_id, 'final' from adapters where job_id = :job returning name
    """
    await stage.rows(old, job=second.spec.job_id)
    assert (await stage.succeed(third)).fine_tuned_model == "ft:c"
    (row,) = await _rows(stage, second)
    assert row.name == "ft:b:ckpt-step-1"
    await stage.finish(second, outcome="cancelled")


async def _rows(stage: Stage, lease: Lease) -> Sequence[Any]:
    query = "select * from models where job_id = :job and kind = 'checkpoint' order by step"
    return await stage.rows(query, job=lease.spec.job_id)
