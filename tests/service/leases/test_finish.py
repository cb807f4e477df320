"""How jobs end: everything of a success together or not at all, once, and one terminal state whoever races."""

import asyncio
import random
from typing import Any

import pytest

from service.contracts.ids import FileId
from service.contracts.layout import adapter_prefix, job_prefix
from service.contracts.manifest import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MANIFEST,
    AdapterManifest,
    adapter_id_of,
    canonical_json,
)
from service.contracts.worker import CheckpointDone, Finished, Lease, UploadRequest
from service.db import ControlSession
from service.errors import InvalidRequest, LeaseLost
from service.jobs import lifecycle, results
from service.leases import checkpoints, finish, uploads
from tests.service.stage import Stage, adapter_files, adapter_manifest
from tests.service.weights import lora_file

ROUNDS = 200


async def test_a_success_publishes_one_adapter_one_name_and_one_usage_row(stage: Stage) -> None:
    project = await stage.project()
    job = await stage.job(project, suffix="poems")
    lease = await stage.claimed()
    await stage.checkpoint(lease, step=50)
    finished = await stage.succeed(lease, tokens=4321)

    assert finished.status == "succeeded"
    assert finished.fine_tuned_model is not None
    base, organization, suffix = finished.fine_tuned_model.split(":")[1:4]
    assert (base, suffix) == ("weft-tiny", "poems")
    assert organization.startswith("acme-")
    row = await stage.row(job)
    assert (row.status, row.phase, row.trained_tokens) == ("succeeded", "finished", 4321)
    assert row.fine_tuned_model == finished.fine_tuned_model
    assert row.finished_at is not None
    assert (await stage.messages(job))[-2:] == [
        f"New fine-tuned model created: {finished.fine_tuned_model}",
        "The job has successfully completed",
    ]
    usage = await stage.rows("select id, kind, model, trained_tokens from usage where project_id = :p", p=project)
    assert [tuple(entry) for entry in usage] == [(f"{job}:1", "training", "weft-tiny", 4321)]
    assert await _adapters(stage, job) == 1
    assert await stage.keys(job_prefix(project, job)) == [], "checkpoints of an ended job are gone"


async def test_a_finish_repeated_because_its_answer_was_lost_gets_the_same_answer(stage: Stage) -> None:
    outcomes: dict[str, dict[str, Any]] = {
        "failed": {"failure": {"code": "loss_diverged", "message": "NaN"}},
        "cancelled": {},
        "released": {},
    }
    for outcome, fields in outcomes.items():
        job = await stage.job(await stage.project())
        lease = await stage.claimed()
        first = await stage.finish(lease, outcome=outcome, **fields)
        history = await stage.messages(job)
        assert await stage.finish(lease, outcome=outcome, **fields) == first
        assert await stage.messages(job) == history
        if outcome == "released":
            await stage.finish(await stage.claimed(), outcome="cancelled")
    job = await stage.job(await stage.project())
    lease = await stage.claimed()
    first = await stage.succeed(lease)
    answers = await asyncio.gather(*(stage.succeed(lease) for _ in range(5)))
    assert answers == [first] * 5
    assert await _adapters(stage, job) == 1


async def test_another_outcome_or_another_adapter_after_the_end_is_refused(stage: Stage) -> None:
    await stage.job(await stage.project())
    lease = await stage.claimed()
    await stage.succeed(lease)
    with pytest.raises(LeaseLost):
        await stage.finish(lease, outcome="cancelled")
    other = await stage.upload_adapter(lease, weights=b"other weights")
    with pytest.raises(LeaseLost):
        await stage.finish(lease, outcome="succeeded", adapter=other)


async def test_a_failure_shows_its_reason(stage: Stage) -> None:
    job = await stage.job(await stage.project())
    failure = {"code": "invalid_training_file", "message": "Line 7 is not JSON.", "param": "training_file"}
    finished = await stage.finish(await stage.claimed(), outcome="failed", failure=failure)
    assert finished == Finished(status="failed", fine_tuned_model=None)
    row = await stage.row(job)
    assert row.error == failure
    assert (await stage.messages(job))[-1] == "Line 7 is not JSON."


async def test_released_goes_back_to_the_queue_without_counting_as_lost(stage: Stage) -> None:
    job = await stage.job(await stage.project())
    await stage.finish(await stage.claimed(), outcome="released")
    row = await stage.row(job)
    assert (row.status, row.lost_workers, row.lease_owner) == ("queued", 0, None)
    again = await stage.claimed()
    assert again.epoch == 2
    await stage.finish(again, outcome="cancelled")


async def test_pausing_and_resuming_a_running_job(stage: Stage) -> None:
    project = await stage.project()
    job = await stage.job(project)
    lease = await stage.claimed()
    async with stage.resources.database.tenant(project) as session:
        assert (await lifecycle.pause(session, job)).status == "running"
    assert (await stage.report(lease)).want == "pause"
    await stage.checkpoint(lease, step=3)
    assert (await stage.finish(lease, outcome="paused")).status == "paused"
    assert await stage.claim() is None
    async with stage.resources.database.tenant(project) as session:
        assert (await lifecycle.resume(session, job)).status == "queued"
    assert (await stage.finish(lease, outcome="paused")).status == "queued", "a repeat of the first finish"
    again = await stage.claimed()
    assert again.checkpoint is not None
    await stage.finish(again, outcome="cancelled")


async def test_a_pause_taken_back_in_time_queues_the_job_again(stage: Stage) -> None:
    project = await stage.project()
    job = await stage.job(project)
    lease = await stage.claimed()
    async with stage.resources.database.tenant(project) as session:
        await lifecycle.pause(session, job)
    async with stage.resources.database.tenant(project) as session:
        await lifecycle.resume(session, job)
    assert (await stage.finish(lease, outcome="paused")).status == "queued"
    await stage.finish(await stage.claimed(), outcome="cancelled")


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "paused", "released", "cancelled"])
async def test_a_cancel_that_came_first_wins_over_every_outcome(stage: Stage, outcome: str) -> None:
    project = await stage.project()
    job = await stage.job(project)
    lease = await stage.claimed()
    fields: dict[str, Any] = {"failure": {"code": "x", "message": "y"}} if outcome == "failed" else {}
    if outcome == "succeeded":
        fields = {"adapter": await stage.uploaded_adapter(lease)}
    async with stage.resources.database.tenant(project) as session:
        await lifecycle.cancel(session, job)

    finished = await stage.finish(lease, outcome=outcome, **fields)

    assert finished == Finished(status="cancelled", fine_tuned_model=None)
    assert await stage.finish(lease, outcome=outcome, **fields) == finished
    assert await _adapters(stage, job) == 0
    if isinstance(adapter := fields.get("adapter"), AdapterManifest):
        assert await stage.keys(adapter_prefix(project, adapter_id_of(adapter))) == []


async def test_cancel_racing_success_ends_in_one_terminal_state(stage: Stage) -> None:
    """Over many seeded rounds: the answer, the job's state, its adapter and its usage row always tell one story."""
    dice, project = random.Random(20261123), await stage.project()
    answers: dict[str, str] = {}
    await stage.jobs(project, ROUNDS)
    for _ in range(ROUNDS):
        lease = await stage.claimed()
        adapter = adapter_manifest(lease.spec, 100, adapter_files(lease.spec, b"w"))
        # Stored before the race: the transaction that the cancellation may win comes after the store has answered.
        results_file = await results.store(stage.resources, lease.spec, ())
        delays = dice.random() * 0.004, dice.random() * 0.004
        finished, _ = await asyncio.gather(
            _finish_after(stage, delays[0], lease, adapter, results_file), _cancel_after(stage, delays[1], lease)
        )
        answers[lease.spec.job_id] = finished.status
    told = """
        select j.id, j.status, count(distinct a.id) adapters, count(distinct m.name) names, count(distinct u.id) usage
        from jobs j left join adapters a on a.job_id = j.id left join models m on m.job_id = j.id
        left join usage u on u.id = j.id || ':' || j.epoch where j.project_id = :project group by j.id
    """
    for row in await stage.rows(told, project=project):
        one = 1 if row.status == "succeeded" else 0
        assert (answers[row.id], row.adapters, row.names, row.usage) == (row.status, one, one, one)
    assert {"succeeded", "cancelled"} == set(answers.values()), "both won now and then"


@pytest.mark.parametrize(
    "damage", ["weights missing", "weights cut", "weights flipped", "manifest missing", "manifest of another"]
)
async def test_an_incomplete_upload_is_refused_and_may_be_mended(stage: Stage, damage: str) -> None:
    job = await stage.job(await stage.project())
    lease = await stage.claimed()
    manifest = await stage.upload_adapter(lease)
    folder = uploads.adapter_folder(lease.spec, manifest)
    store = stage.resources.store
    if damage.endswith("missing"):
        store.delete([folder + (MANIFEST if "manifest" in damage else ADAPTER_WEIGHTS)])
    elif damage == "weights flipped":
        await stage.put(folder, {ADAPTER_WEIGHTS: adapter_files(lease.spec, b"of the same size")[ADAPTER_WEIGHTS]})
    else:
        name = MANIFEST if "manifest" in damage else ADAPTER_WEIGHTS
        await stage.put(folder, {name: canonical_json(manifest.model_copy(update={"step": 1}))})

    with pytest.raises(InvalidRequest) as refused:
        await stage.finish(lease, outcome="succeeded", adapter=manifest)

    assert refused.value.code == "upload_incomplete"
    assert (await stage.row(job)).status == "running"
    assert (await stage.succeed(lease)).status == "succeeded"


@pytest.mark.parametrize("fault", ["no safetensors", "another rank", "one factor", "no place for values"])
async def test_an_adapter_that_no_replica_would_serve_ends_no_job_well(stage: Stage, fault: str) -> None:
    job = await stage.job(await stage.project())
    lease = await stage.claimed()
    sound = lora_file(b"w", lease.spec.hyperparameters.lora_rank)
    weights = {
        "no safetensors": b"weights",
        "another rank": lora_file(b"w", lease.spec.hyperparameters.lora_rank + 1),
        "one factor": sound.replace(b"lora_B", b"lora_C"),
        "no place for values": sound[:-4],
    }[fault]
    files = {ADAPTER_CONFIG: b"{}", ADAPTER_WEIGHTS: weights}
    manifest = adapter_manifest(lease.spec, 100, files)
    await stage.put(uploads.adapter_folder(lease.spec, manifest), {**files, MANIFEST: canonical_json(manifest)})
    with pytest.raises(InvalidRequest) as refused:
        await stage.finish(lease, outcome="succeeded", adapter=manifest)
    assert refused.value.code == "adapter_unservable"
    assert (await stage.row(job)).status == "running"
    assert await stage.rows("select id from usage where project_id = :p", p=lease.spec.project_id) == []
    await stage.finish(lease, outcome="cancelled")


async def test_an_adapter_is_its_two_files_and_no_others(stage: Stage) -> None:
    job = await stage.job(await stage.project())
    lease = await stage.claimed()
    more = adapter_manifest(lease.spec, 100, {**adapter_files(lease.spec, b"w"), "run.py": b"x"})
    with pytest.raises(InvalidRequest, match="An adapter is"):
        await uploads.targets(stage.resources, job, UploadRequest(epoch=lease.epoch, kind="adapter", adapter=more))
    await stage.finish(lease, outcome="cancelled")


@pytest.mark.parametrize(
    "change",
    [
        {"job_id": "ftjob-other"},
        {"base_model": "other"},
        {"base_fingerprint": "0" * 64},
        {"chat_template_sha256": None},
        {"rank": 8},
        {"alpha": 1.0},
    ],
)
async def test_an_adapter_that_is_not_what_the_job_asked_for_is_refused(
    stage: Stage, change: dict[str, object]
) -> None:
    job = await stage.job(await stage.project())
    lease = await stage.claimed()
    manifest = (await stage.upload_adapter(lease)).model_copy(update=change)
    for call in (
        stage.finish(lease, outcome="succeeded", adapter=manifest),
        uploads.targets(stage.resources, job, UploadRequest(epoch=lease.epoch, kind="adapter", adapter=manifest)),
    ):
        with pytest.raises(InvalidRequest) as refused:
            await call
        assert refused.value.code == "adapter_mismatch"
    await stage.finish(lease, outcome="cancelled")


async def test_checkpoints_only_move_forward_and_the_last_two_stay(stage: Stage) -> None:
    project = await stage.project()
    job = await stage.job(project)
    lease = await stage.claimed()
    for step in (1, 2, 3, 4):
        await stage.checkpoint(lease, step=step)
    older = await stage.upload_checkpoint(lease, step=3)
    await checkpoints.register(stage.resources, job, CheckpointDone(epoch=lease.epoch, manifest=older))

    row = await stage.row(job)
    assert row.checkpoint is not None
    assert row.checkpoint["step"] == 4
    folders = {
        key.removeprefix(job_prefix(project, job)).rsplit("/", 1)[0]
        for key in await stage.keys(job_prefix(project, job))
    }
    assert folders == {"e1/step-3", "e1/step-4"}
    await stage.finish(lease, outcome="cancelled")


async def test_an_incomplete_checkpoint_is_not_registered(stage: Stage) -> None:
    job = await stage.job(await stage.project())
    lease = await stage.claimed()
    manifest = await stage.upload_checkpoint(lease, step=1)
    stage.resources.store.delete([uploads.checkpoint_folder(lease.spec, manifest) + "state.safetensors"])
    with pytest.raises(InvalidRequest) as refused:
        await checkpoints.register(stage.resources, job, CheckpointDone(epoch=lease.epoch, manifest=manifest))
    assert refused.value.code == "upload_incomplete"
    assert (await stage.row(job)).checkpoint is None
    await stage.finish(lease, outcome="cancelled")


async def test_outcome_and_contents_must_fit(stage: Stage) -> None:
    await stage.job(await stage.project())
    lease = await stage.claimed()
    wrong: dict[str, dict[str, Any]] = {
        "succeeded": {},
        "failed": {},
        "cancelled": {"failure": {"code": "x", "message": "y"}},
        "paused": {"adapter": await stage.upload_adapter(lease)},
    }
    for outcome, fields in wrong.items():
        with pytest.raises(InvalidRequest):
            await stage.finish(lease, outcome=outcome, **fields)
    await stage.finish(lease, outcome="cancelled")


async def _finish_after(
    stage: Stage, delay: float, lease: Lease, adapter: AdapterManifest, results_file: FileId
) -> Finished:
    """The guarded transaction alone: verifying the upload would decide every race before it begins."""
    await asyncio.sleep(delay)
    async with stage.resources.database.control() as session:
        assert isinstance(session, ControlSession)
        request = finish.Finish(epoch=lease.epoch, outcome="succeeded", trained_tokens=1, step=1, adapter=adapter)
        return await finish.commit_finish(session, lease.spec.job_id, request, results_file)


async def _cancel_after(stage: Stage, delay: float, lease: Lease) -> None:
    await asyncio.sleep(delay)
    try:
        async with stage.resources.database.tenant(lease.spec.project_id) as session:  # pyright: ignore[reportArgumentType]
            await lifecycle.cancel(session, lease.spec.job_id)
    except InvalidRequest as error:
        if error.code != "job_not_cancellable":
            raise


async def _adapters(stage: Stage, job: str) -> int:
    query = "select count(*) from adapters a join models m on m.adapter_id = a.id where a.job_id = :job"
    return (await stage.rows(query, job=job))[0][0]
