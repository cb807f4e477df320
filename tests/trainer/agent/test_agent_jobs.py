"""What an agent does with a job: from claim to finish, and every way a job itself can end."""

import pytest

from service.contracts.manifest import adapter_id_of
from tests.trainer.agent.agent_harness import LINES, AgentProcess, queue_job, until
from tests.trainer.agent.stand_in_service import Job, StandInService


async def test_a_job_runs_from_claim_to_adapter(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    await agent.start()
    await until(lambda: job.status == "succeeded", what="job succeeded")
    finish = job.finishes[0]
    assert finish.adapter is not None
    assert (finish.step, finish.trained_tokens, finish.adapter.step) == (10, 10, 10)
    assert [file.path for file in finish.adapter.files] == ["adapter_config.json", "adapter_model.safetensors"]
    uploaded = service.object_keys(f"adapters/{adapter_id_of(finish.adapter)}/")
    assert uploaded[-1].endswith("/manifest.json")
    assert {event.data["step"] for event in job.events.values() if event.type == "metrics"} == set(range(1, 11))
    phases = [report.phase for report in job.reports]
    assert phases[0] == "preparing"
    assert phases == sorted(phases, key=["preparing", "training", "saving"].index)
    await until(lambda: not list((agent.folder / "work" / "jobs").iterdir()), what="job folder removed")
    assert f"trainer: job {job.spec.job_id} claimed (epoch 1, from step 0)" in agent.log


async def test_checkpoints_are_stored_manifest_last_while_training_goes_on(
    service: StandInService, agent: AgentProcess
) -> None:
    job = queue_job(service)
    await agent.start({"steps": 12, "step_seconds": 0.05})
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert [manifest.step for manifest in job.checkpoints] == [4, 8]


async def test_an_agent_holds_no_more_jobs_than_it_may(service: StandInService, agent: AgentProcess) -> None:
    jobs = [queue_job(service, f"job{number}") for number in range(4)]
    held: list[int] = []
    service.fault = lambda call: held.append(sum(job.status == "running" for job in jobs)) or "none"
    await agent.start({"steps": 20}, jobs=2)
    await until(lambda: all(job.status == "succeeded" for job in jobs), what="all jobs succeeded")
    assert max(held) == 2


async def test_cancel_stops_the_job_without_a_checkpoint(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    await agent.start({"steps": 10_000, "checkpoint_every": 100_000})
    await until(lambda: job.reports and job.reports[-1].step > 3, what="training")
    job.want = "cancel"
    await until(lambda: job.status == "cancelled", what="job cancelled")
    assert [stop["save"] for stop in agent.told("stop")] == [False]
    assert not service.puts


async def test_cancel_before_training_never_reaches_the_engine(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    job.want = "cancel"
    await agent.start()
    await until(lambda: job.status == "cancelled", what="job cancelled")
    assert not agent.told("start")


async def test_pause_keeps_a_checkpoint_and_the_job_goes_on_from_it(
    service: StandInService, agent: AgentProcess
) -> None:
    job = queue_job(service)
    await agent.start({"steps": 60, "step_seconds": 0.02, "checkpoint_every": 100_000})
    await until(lambda: job.reports and job.reports[-1].step > 3, what="training")
    job.want = "pause"
    await until(lambda: job.status == "paused", what="job paused")
    assert job.checkpoint is not None
    assert job.finishes[0].step == job.checkpoint.step
    service.requeue(job)
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert [start["step"] for start in agent.told("start")] == [0, job.checkpoint.step]


async def test_a_job_that_pauses_at_its_last_checkpoint_keeps_it(service: StandInService, agent: AgentProcess) -> None:
    """The engine writes the same folder twice, and the agent must not take the first for one to be removed."""
    job = queue_job(service)
    await agent.start({"steps": 100, "step_seconds": 0.1, "checkpoint_every": 1})
    await until(lambda: len(job.checkpoints) > 2, what="checkpoints")
    job.want = "pause"
    await until(lambda: job.status == "paused", what="job paused")
    assert job.checkpoint is not None
    assert job.finishes[0].step == job.checkpoint.step
    assert "checkpoint_not_stored" not in job.codes()


async def test_a_job_that_fails_leaves_its_neighbour_alone(service: StandInService, agent: AgentProcess) -> None:
    bad, good = queue_job(service, "bad"), queue_job(service, "good")
    await agent.start({"steps": 30, "faults": [{"at": "step:5", "do": "fail", "job": "ftjob-bad"}]})
    await until(lambda: bad.status == "failed" and good.status == "succeeded", what="both ended")
    failure = bad.finishes[0].failure
    assert failure is not None
    assert (failure.code, bad.finishes[0].step) == ("loss_diverged", 5)
    assert len(agent.told("start")) == 2


async def test_a_damaged_training_file_fails_the_job(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    service.on_get = lambda key, body: b"X" + body[1:]
    await agent.start()
    await until(lambda: job.status == "failed", what="job failed")
    failure = job.finishes[0].failure
    assert failure is not None
    assert (failure.code, failure.param) == ("file_corrupt", "training_file")
    fetched = [call for call, _ in service.calls].count("get")
    assert fetched == 3, "the transfer may be at fault, so it is repeated, but not for ever"
    assert not agent.told("prepare")


async def test_one_damaged_transfer_is_repeated(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    answers = iter([LINES[:10], LINES + b"more"])
    service.on_get = lambda key, body: next(answers, body)
    await agent.start()
    await until(lambda: job.status == "succeeded", what="job succeeded")


async def test_a_training_file_that_is_gone_fails_the_job(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    real, served = service._grant, job.training_file

    def grant(request: object, granted: Job) -> object:
        lease = real(request, granted)  # type: ignore[arg-type]
        service.objects.pop(served)
        return lease

    service._grant = grant  # type: ignore[method-assign, assignment]
    await agent.start()
    await until(lambda: job.status == "failed", what="job failed")
    assert job.finishes[0].failure is not None
    assert job.finishes[0].failure.code == "file_missing"


async def test_a_job_begins_with_the_adapter_of_another(service: StandInService, agent: AgentProcess) -> None:
    first = queue_job(service, "first")
    await agent.start()
    await until(lambda: first.status == "succeeded", what="the first succeeded")
    second = queue_job(service, "second")
    second.start_adapter = first.finishes[0].adapter
    await until(lambda: second.status == "succeeded", what="the second succeeded")
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert [start["adapter"] for start in agent.told("start")] == [None, files]


@pytest.mark.parametrize("damage", ["flipped", "gone"])
async def test_a_job_whose_beginning_is_damaged_fails(
    service: StandInService, agent: AgentProcess, damage: str
) -> None:
    first = queue_job(service, "first")
    await agent.start()
    await until(lambda: first.status == "succeeded", what="the first succeeded")
    for key in service.object_keys("adapters/"):
        if key.endswith("adapter_model.safetensors"):
            service.objects[key] = b"X" + service.objects[key][1:]
            if damage == "gone":
                del service.objects[key]
    second = queue_job(service, "second")
    second.start_adapter = first.finishes[0].adapter
    await until(lambda: second.status == "failed", what="the second failed")
    failure = second.finishes[0].failure
    assert failure is not None
    assert (failure.code, failure.param) == ("start_model_corrupt", "model")


async def test_a_damaged_checkpoint_costs_progress_and_not_the_job(
    service: StandInService, agent: AgentProcess
) -> None:
    job = queue_job(service)
    await agent.start({"steps": 60, "step_seconds": 0.02})
    await until(lambda: len(job.checkpoints) > 1, what="checkpoints")
    job.want = "pause"
    await until(lambda: job.status == "paused", what="job paused")
    service.on_get = lambda key, body: b"{}" if key.endswith("state.json") else body
    service.requeue(job)
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert [start["step"] for start in agent.told("start")] == [0, 0]
    assert "checkpoint_corrupt" in job.codes()


async def test_a_checkpoint_that_cannot_be_stored_costs_a_warning(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    service.put_status = lambda key: 403 if key.startswith("checkpoints/") and "step-4" in key else 200
    await agent.start({"steps": 12, "step_seconds": 0.05})
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert "checkpoint_not_stored" in job.codes()
    assert [manifest.step for manifest in job.checkpoints] == [8], "the next one is tried again"


async def test_an_upload_url_that_has_run_out_is_asked_for_again(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    statuses = iter([403, 500, 403])
    service.put_status = lambda key: next(statuses, 200) if key.startswith("adapters/") else 200
    await agent.start()
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert [call for call, _ in service.calls].count("uploads") >= 3


async def test_a_base_with_another_chat_template_trains_nothing(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    await agent.start({"template": "0" * 64})
    await until(lambda: bool(job.finishes), what="job given back")
    assert job.finishes[0].outcome == "released"
    assert "worker_unfit" in job.codes()
    assert not agent.told("prepare")


async def test_long_lines_of_many_events_arrive_whole_and_in_little_memory(
    service: StandInService, agent: AgentProcess
) -> None:
    job = queue_job(service)
    await agent.start({"steps": 10, "big_events": 300})
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert sum(event.id.startswith("ftevent-one-b") for event in job.events.values()) == 3000
    assert all(len(report.events) <= 200 for report in job.reports)


async def test_the_agent_is_small_and_starts_jobs_at_once(service: StandInService, agent: AgentProcess) -> None:
    await agent.start()
    await until(lambda: "trainer: engine ready" in agent.log, what="engine ready")
    delays = []
    for number in range(10):
        job = queue_job(service, f"job{number}")
        await until(lambda job=job: job.status == "succeeded", what="job succeeded")
        delays.append(agent.told("start")[-1]["at"] - job.claimed_at)
    peak = agent.peak_mib()
    print(f"agent peak {peak:.0f} MiB; claim to start {sorted(delays)[5] * 1e3:.0f} ms median of {len(delays)}")
    assert peak <= 100
    assert sorted(delays)[5] < 1.0
