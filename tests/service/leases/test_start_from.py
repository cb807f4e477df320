"""Jobs that go on from a fine-tuned model: what they inherit, what the lease holds, how long the adapter stays."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from service.adapters import removal
from service.contracts.ids import ProjectId
from service.contracts.layout import adapter_prefix
from service.contracts.manifest import ADAPTER_WEIGHTS, AdapterManifest, adapter_id_of
from service.contracts.worker import Lease
from service.errors import InvalidRequest, ModelNotFound
from service.jobs import lifecycle
from tests.service.stage import Stage


async def trained(stage: Stage, **body: Any) -> tuple[ProjectId, str, AdapterManifest]:
    """A model that exists: its project, name and adapter."""
    project = await stage.project()
    await stage.job(project, **body)
    lease = await stage.claimed()
    manifest = await stage.upload_adapter(lease, weights=lease.spec.job_id.encode())
    finished = await stage.finish(lease, outcome="succeeded", tokens=10, adapter=manifest)
    assert finished.fine_tuned_model is not None
    return project, finished.fine_tuned_model, manifest


async def stored(stage: Stage, project: ProjectId, manifest: AdapterManifest) -> Sequence[str]:
    return await stage.keys(adapter_prefix(project, adapter_id_of(manifest)))


async def next_lease(stage: Stage, job: str) -> Lease:
    lease = await stage.claimed()
    assert lease.spec.job_id == job
    return lease


async def test_the_shape_is_inherited_and_the_lease_brings_the_weights(stage: Stage) -> None:
    project, model, manifest = await trained(stage, hyperparameters={"lora_rank": 8})
    job = await stage.job(project, model=model)
    row = await stage.row(job)
    assert (row.model, row.start_model, row.start_adapter) == ("weft-tiny", model, adapter_id_of(manifest))
    lease = await next_lease(stage, job)
    chosen, start = lease.spec.hyperparameters, lease.spec.start_from
    assert start is not None
    assert (start.adapter_id, start.rank, start.alpha) == (adapter_id_of(manifest), 8, manifest.alpha)
    assert (chosen.lora_rank, chosen.lora_alpha, chosen.target_modules) == (8, manifest.alpha, ("q_proj", "v_proj"))
    assert lease.spec.rules["lora_rank"] == f"inherited from {model}"
    assert lease.start_adapter is not None
    assert lease.start_adapter.manifest == manifest
    key = adapter_prefix(project, adapter_id_of(manifest)) + ADAPTER_WEIGHTS
    assert key in lease.start_adapter.urls[ADAPTER_WEIGHTS]
    # A checkpoint goes before, and where it is damaged the job begins at the adapter again.
    await stage.checkpoint(lease, step=5)
    await stage.finish(lease, outcome="released")
    again = await next_lease(stage, job)
    assert again.checkpoint is not None
    assert again.start_adapter is not None
    await stage.finish(again, outcome="cancelled")


async def test_a_checkpoint_model_will_do_and_the_result_is_named_after_the_base(stage: Stage) -> None:
    project = await stage.project()
    await stage.job(project)
    lease = await stage.claimed()
    await stage.checkpoint_model(lease, step=5)
    await stage.finish(lease, outcome="cancelled")
    (checkpoint,) = await stage.rows("select name from models where project_id = :p", p=project)
    job = await stage.job(project, model=checkpoint.name, suffix="more")
    finished = await stage.succeed(await next_lease(stage, job))
    assert (finished.fine_tuned_model or "").startswith("ft:weft-tiny:")


@pytest.mark.parametrize(
    "settings", [{"lora_rank": 16}, {"lora_alpha": 8}, {"target_modules": "all-linear"}, {"target_modules": ["q_proj"]}]
)
async def test_another_shape_is_refused(stage: Stage, settings: dict[str, Any]) -> None:
    project, model, _ = await trained(stage, hyperparameters={"lora_rank": 8})
    with pytest.raises(InvalidRequest) as refused:
        await stage.job(project, model=model, hyperparameters=settings)
    assert (refused.value.code, refused.value.param) == ("adapter_mismatch", next(iter(settings)))


async def test_the_same_shape_may_be_named(stage: Stage) -> None:
    project, model, _ = await trained(stage, hyperparameters={"lora_rank": 8})
    same = {"lora_rank": 8, "target_modules": ["v_proj", "q_proj"]}
    job = await stage.job(project, model=model, hyperparameters=same)
    await stage.finish(await next_lease(stage, job), outcome="cancelled")


async def test_foreign_ended_and_unknown_models_are_refused_alike(stage: Stage) -> None:
    project, model, _ = await trained(stage)
    stranger = await stage.project()
    await removal.remove(stage.resources, project, model)
    told: set[str] = set()
    for owner in (project, stranger):
        with pytest.raises(ModelNotFound) as refused:
            await stage.job(owner, model=model)
        told.add(refused.value.message)
    with pytest.raises(ModelNotFound) as refused:
        await stage.job(stranger, model="ft:weft-tiny:acme::unknown0")
    told.add(refused.value.message.replace("ft:weft-tiny:acme::unknown0", model))
    assert len(told) == 1


async def test_a_model_of_another_base_is_refused(stage: Stage) -> None:
    project, model, manifest = await trained(stage)
    changed = manifest.model_copy(update={"base_fingerprint": "0" * 64}).model_dump_json()
    update = "update adapters set manifest = cast(:m as jsonb) where id = :id returning id"
    await stage.rows(update, m=changed, id=adapter_id_of(manifest))
    with pytest.raises(InvalidRequest) as refused:
        await stage.job(project, model=model)
    assert refused.value.code == "base_model_changed"


async def test_a_deleted_model_stays_for_jobs_that_begin_at_it(stage: Stage) -> None:
    project, model, manifest = await trained(stage)
    job = await stage.job(project, model=model)
    await removal.remove(stage.resources, project, model)
    await removal.sweep(stage.resources)
    lease = await next_lease(stage, job)
    assert lease.start_adapter is not None
    assert await stored(stage, project, manifest)
    await stage.finish(lease, outcome="cancelled")
    await removal.sweep(stage.resources)
    assert not await stored(stage, project, manifest)


async def test_deleting_races_creating_and_no_job_is_left_without_its_adapter(stage: Stage) -> None:
    for _ in range(15):
        project, model, manifest = await trained(stage)
        made, _ = await asyncio.gather(
            stage.job(project, model=model), removal.remove(stage.resources, project, model), return_exceptions=True
        )
        await removal.sweep(stage.resources)
        if isinstance(made, BaseException):
            assert isinstance(made, ModelNotFound)
            continue
        assert await stored(stage, project, manifest)
        async with stage.resources.database.tenant(project) as session:
            await lifecycle.cancel(session, made)
