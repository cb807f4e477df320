"""Checkpoint models: adapters of a running job that become known while it goes on, and never at its cost."""

import asyncio
from pathlib import Path

from service.contracts.manifest import ADAPTER_WEIGHTS, adapter_id_of
from tests.trainer.agent.agent_harness import AgentProcess, queue_job, until
from tests.trainer.agent.stand_in_service import Job, StandInService

SLOWLY = {"steps": 30, "step_seconds": 0.02, "model_every": 10, "checkpoint_every": 1000}


def steps_of(job: Job) -> list[int]:
    return [model.adapter.step for model in job.models]


def skipped(job: Job) -> list[int]:
    return [
        event.data["step"] for event in job.events.values() if event.data.get("code") == "checkpoint_model_not_stored"
    ]


def model_folders(agent: AgentProcess) -> list[Path]:
    return list((agent.folder / "work" / "jobs").glob("*/engine-*/model-*"))


async def test_models_become_known_while_the_job_goes_on(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    await agent.start({**SLOWLY, "steps": 60})
    await until(lambda: len(job.models) >= 2, what="two models")
    assert job.status == "running"
    await until(lambda: not model_folders(agent) or job.status != "running", what="folders removed")
    assert job.status == "running"
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert steps_of(job) == [10, 20, 30, 40, 50]
    first = job.models[0]
    assert (first.epoch, first.metrics.step, first.metrics.train_loss) == (1, 10, 0.1)
    assert (first.adapter.rank, first.adapter.target_modules) == (8, ("q_proj",))
    stored = service.objects[f"adapters/{adapter_id_of(first.adapter)}/{ADAPTER_WEIGHTS}"]
    assert stored.endswith(bytes([10]))


async def test_the_best_adapter_has_its_own_step_and_the_job_its_last(
    service: StandInService, agent: AgentProcess
) -> None:
    job = queue_job(service)
    await agent.start({"adapter_step": 6})
    await until(lambda: job.status == "succeeded", what="job succeeded")
    finish = job.finishes[0]
    assert finish.adapter is not None
    assert (finish.step, finish.adapter.step) == (10, 6)


async def test_a_job_that_is_trained_waits_for_its_models(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    service.fault = lambda call: "503" if call == "checkpoint-models" else "none"
    await agent.start(SLOWLY)
    await until(lambda: job.reports and job.reports[-1].phase == "saving", what="saving")
    assert not job.models
    service.fault = lambda call: "none"
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert steps_of(job) == [10, 20]


async def test_of_many_that_wait_the_newest_are_kept(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    service.fault = lambda call: "503" if call == "checkpoint-models" else "none"
    await agent.start({**SLOWLY, "steps": 20, "model_every": 2})
    await until(lambda: job.reports and job.reports[-1].phase == "saving", what="saving")
    assert len(model_folders(agent)) == 4, "one is on its way and three wait"
    service.fault = lambda call: "none"
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert steps_of(job) == [2, 14, 16, 18]
    assert skipped(job) == [4, 6, 8, 10, 12]


async def test_one_that_cannot_be_stored_costs_a_warning(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    refused: list[str] = []

    def status(key: str) -> int:
        folder = key.rpartition("/")[0]
        if key.startswith("adapters/") and (not refused or folder in refused):
            refused.append(folder)
            return 403
        return 200

    service.put_status = status
    await agent.start(SLOWLY)
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert (skipped(job), steps_of(job)) == ([10], [20])


async def test_a_lost_lease_ends_the_storing(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    service.renew_seconds = 20.0  # Nobody else notices.
    await agent.start({**SLOWLY, "steps": 10_000}, report_seconds=20.0)
    await until(lambda: bool(job.models), what="a model")
    job.status, job.epoch = "paused", job.epoch + 1
    await until(lambda: "given up (lost)" in agent.log, what="run ended")
    known, puts = list(job.models), list(service.puts)
    await asyncio.sleep(0.5)  # Time in which a trace could still be left; nothing to poll for.
    assert (job.models, service.puts, job.finishes) == (known, puts, [])


async def test_a_job_is_paused_when_its_models_are_known(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    service.fault = lambda call: "503" if call == "checkpoint-models" else "none"
    await agent.start({**SLOWLY, "steps": 10_000})
    await until(lambda: job.reports and job.reports[-1].step > 12, what="training")
    job.want = "pause"
    await until(lambda: bool(agent.told("stop")), what="stopped")
    assert job.status == "running"
    service.fault = lambda call: "none"
    await until(lambda: job.status == "paused", what="job paused")
    assert steps_of(job) == list(range(10, job.finishes[0].step + 1, 10))


async def test_a_model_that_is_written_again_after_a_crash_is_stored_once(
    service: StandInService, agent: AgentProcess
) -> None:
    job = queue_job(service)
    faults = [{"at": "step:15", "do": "die"}]
    await agent.start({**SLOWLY, "faults": faults})
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert [start["step"] for start in agent.told("start")] == [0, 0], "it went back before the model"
    assert steps_of(job) == [10, 20]
    uploads = [key for key in service.puts if key.endswith(f"{adapter_id_of(job.models[0].adapter)}/manifest.json")]
    assert len(uploads) == 1


async def test_a_checkpoint_waits_for_the_models_before_it(service: StandInService, agent: AgentProcess) -> None:
    """Who resumes from a checkpoint writes no model of before it again."""
    job = queue_job(service)
    service.fault = lambda call: "503" if call == "checkpoint-models" else "none"
    await agent.start({**SLOWLY, "steps": 10_000, "checkpoint_every": 15})
    await until(lambda: any("step-15/manifest.json" in key for key in service.puts), what="checkpoint stored")
    assert not job.checkpoints
    service.fault = lambda call: "none"
    await until(lambda: bool(job.checkpoints), what="checkpoint known")
    assert steps_of(job)[:1] == [10]
