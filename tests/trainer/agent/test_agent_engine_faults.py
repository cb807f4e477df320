"""A child that dies, hangs or talks nonsense: jobs go on in the same lease, and one job's crash is not another's."""

import os
import signal

import pytest

from tests.trainer.agent.agent_harness import AgentProcess, queue_job, until
from tests.trainer.agent.stand_in_service import StandInService


async def test_a_killed_engine_goes_on_from_the_newest_local_checkpoint(
    service: StandInService, agent: AgentProcess
) -> None:
    job = queue_job(service)
    service.put_status = lambda key: 403 if key.startswith("checkpoints/") else 200  # None is ever registered.
    await agent.start({"steps": 60, "step_seconds": 0.02})
    await until(lambda: job.reports and job.reports[-1].step > 9, what="training")
    os.kill(agent.told("start")[0]["pid"], signal.SIGKILL)
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert (job.epoch, len(job.finishes)) == (1, 1)
    assert "engine_restarted" in job.codes()
    first, second = agent.told("start")
    assert (first["step"], second["step"] % 4) == (0, 0)
    assert second["step"] >= 8


@pytest.mark.parametrize("fault", ["die", "garbage", "silence"])
async def test_an_engine_that_misbehaves_is_replaced(service: StandInService, agent: AgentProcess, fault: str) -> None:
    job = queue_job(service)
    await agent.start({"faults": [{"at": "step:6", "do": fault}]}, stall_seconds=1.0)
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert (job.epoch, [start["step"] for start in agent.told("start")]) == (1, [0, 4])
    assert "secret" not in agent.log


async def test_a_job_that_kills_the_engine_fails_alone(service: StandInService, agent: AgentProcess) -> None:
    poison, good = queue_job(service, "poison"), queue_job(service, "good")
    plan = {"steps": 40, "step_seconds": 0.02, "checkpoint_every": 30}
    await agent.start({**plan, "faults": [{"at": "step:3", "do": "die", "job": "ftjob-poison", "times": 99}]})
    await until(lambda: poison.status == "failed", what="poison failed")
    failure = poison.finishes[0].failure
    assert failure is not None
    assert failure.code == "engine_crashed"
    assert "batch_size" in failure.message, "its owner is told what to try"
    await until(lambda: good.status == "succeeded", what="neighbour succeeded")
    assert good.epoch == 1
    assert len(agent.told("die")) == 3


async def test_deaths_are_forgiven_by_a_newer_checkpoint(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    faults = [{"at": f"step:{step}", "do": "die"} for step in (5, 6, 9, 10)]
    await agent.start({"steps": 12, "faults": faults})
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert len(agent.told("die")) == 4


async def test_an_engine_that_dies_while_pausing_leaves_the_last_checkpoint(
    service: StandInService, agent: AgentProcess
) -> None:
    job = queue_job(service)
    await agent.start({"steps": 10_000, "step_seconds": 0.02, "faults": [{"at": "stop", "do": "die"}]})
    await until(lambda: len(job.checkpoints) > 0, what="checkpoint")
    job.want = "pause"
    await until(lambda: job.status == "paused", what="job paused")
    assert job.checkpoint is not None


async def test_a_preparer_that_dies_over_a_file_gets_a_second_try(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    await agent.start({"faults": [{"at": "prepare", "do": "die"}]})
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert len(agent.told("prepare")) == 2


async def test_a_file_that_kills_the_preparer_twice_fails_its_job_only(
    service: StandInService, agent: AgentProcess
) -> None:
    bad, good = queue_job(service, "bad"), queue_job(service, "good")
    await agent.start({"faults": [{"at": "prepare", "do": "die", "job": "ftjob-bad", "times": 99}]})
    await until(lambda: bad.status == "failed" and good.status == "succeeded", what="both ended")
    failure = bad.finishes[0].failure
    assert failure is not None
    assert (failure.code, failure.param) == ("invalid_training_file", "training_file")


async def test_another_base_than_the_settings_name_ends_the_agent(service: StandInService, agent: AgentProcess) -> None:
    queue_job(service)
    await agent.start({"fingerprint": "e" * 64})
    assert await agent.ended() == 1
    assert "WEFT_TRAINER_BASE_FINGERPRINT" in agent.log
    assert not [call for call in service.calls if call[0] == "claim"]


async def test_nothing_is_claimed_while_the_engine_does_not_start(service: StandInService, agent: AgentProcess) -> None:
    queue_job(service)
    await agent.start({"unstartable": True})
    await until(lambda: agent.log.count("engine ended") >= 2, what="engine tried twice")
    assert not service.calls
