"""Leases: lost ones, ones that cannot be renewed, and a service that answers badly or not at all."""

import asyncio
import random
import signal
import time

import pytest

from tests.trainer.agent.agent_harness import AgentProcess, alive, queue_job, until
from tests.trainer.agent.stand_in_service import Job, StandInService
from tests.trainer.agent.stand_in_store import Fault

ENDLESS = {"steps": 100_000, "step_seconds": 0.02, "checkpoint_every": 20}


async def training(job: Job, steps: int = 3) -> None:
    await until(lambda: job.reports and job.reports[-1].step > steps, what="training")


async def test_a_lost_lease_stops_the_job_and_leaves_no_trace(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    await agent.start(ENDLESS)
    await training(job)
    job.status, job.epoch = "paused", job.epoch + 1  # Whatever it was, this epoch is over.
    lost_at = time.monotonic()
    await until(lambda: len(agent.told("stop")) == 1, what="engine told to stop")
    assert agent.told("stop")[0]["save"] is False
    assert agent.told("stop")[0]["at"] - lost_at < 2
    await until(lambda: "given up (lost)" in agent.log, what="run ended")
    puts, events = list(service.puts), dict(job.events)
    await asyncio.sleep(0.5)  # Time in which a trace could still be left; nothing to poll for.
    assert (service.puts, job.events, job.finishes) == (puts, events, [])
    assert not list((agent.folder / "work" / "jobs").iterdir())


async def test_no_service_for_a_whole_lease_fences_the_job_before_the_lease_ends(
    service: StandInService, agent: AgentProcess
) -> None:
    service.ttl = 3.0
    job = queue_job(service)
    await agent.start({"steps": 150, "step_seconds": 0.02, "checkpoint_every": 20})
    await until(lambda: job.checkpoint is not None, what="a checkpoint")
    service.fault = lambda call: "drop"
    await until(lambda: len(agent.told("stop")) == 1, what="engine told to stop")
    assert agent.told("stop")[0]["at"] < job.lease_until
    resumes_from = job.checkpoint
    service.fault = lambda call: "none"
    await until(lambda: job.status == "succeeded", seconds=30, what="job succeeded")
    assert (job.epoch, len(job.finishes)) == (2, 1)
    assert resumes_from is not None
    assert [start["step"] for start in agent.told("start")] == [0, resumes_from.step]


async def test_an_engine_that_ignores_the_fence_is_killed_before_the_lease_ends(
    service: StandInService, agent: AgentProcess
) -> None:
    service.ttl = 3.0
    job = queue_job(service)
    await agent.start({**ENDLESS, "faults": [{"at": "stop", "do": "silence"}]})
    await training(job)
    engine = agent.told("start")[0]["pid"]
    service.fault = lambda call: "503"
    while alive(engine):
        assert time.monotonic() < job.lease_until, "the job outlived its lease"
        await asyncio.sleep(0.01)


async def test_an_agent_that_slept_through_its_lease_is_refused_and_notices(
    service: StandInService, agent: AgentProcess
) -> None:
    service.ttl = 3.0
    job = queue_job(service)
    await agent.start({"steps": 200, "step_seconds": 0.02, "checkpoint_every": 20})
    await training(job)
    agent.send(signal.SIGSTOP)
    await until(lambda: job.lease_until < time.monotonic(), what="lease over")
    agent.send(signal.SIGCONT)
    await until(lambda: job.status == "succeeded", seconds=30, what="job succeeded")
    assert job.epoch > 1
    assert [finish.epoch for finish in job.finishes] == [job.epoch]


async def test_reports_wait_for_a_service_that_is_away_for_less_than_a_lease(
    service: StandInService, agent: AgentProcess
) -> None:
    job = queue_job(service)
    await agent.start({"steps": 80, "step_seconds": 0.02})
    await training(job)
    service.fault = lambda call: "503"
    await asyncio.sleep(1)  # The outage itself.
    service.fault = lambda call: "none"
    await until(lambda: job.status == "succeeded", what="job succeeded")
    steps = {event.data["step"] for event in job.events.values() if event.type == "metrics"}
    assert steps == set(range(1, 81))
    assert job.epoch == 1


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_one_finish_is_accepted_whatever_the_network_does(
    service: StandInService, agent: AgentProcess, seed: int
) -> None:
    """A third of all calls, storage included, fail before or after they took effect."""
    service.ttl = 3.0
    chance = random.Random(seed)
    faults: tuple[Fault, ...] = ("503", "drop", "answer_lost")
    service.fault = lambda call: chance.choice(faults) if chance.random() < 1 / 3 else "none"
    jobs = [queue_job(service, f"job{number}") for number in range(3)]
    await agent.start({"steps": 20, "step_seconds": 0.02})
    await until(lambda: all(job.status == "succeeded" for job in jobs), seconds=90, what="all jobs succeeded")
    for job in jobs:
        assert [finish.outcome for finish in job.finishes] == ["succeeded"]
        assert job.finishes[0].epoch == job.epoch


async def test_a_refused_token_ends_the_agent_with_a_clear_word(service: StandInService, agent: AgentProcess) -> None:
    await agent.start(worker_token="wrong-and-secret")
    assert await agent.ended() == 1
    assert "Incorrect API key provided. (HTTP 401" in agent.log
    assert "wrong-and-secret" not in agent.log
