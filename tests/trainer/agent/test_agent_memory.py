"""A job that the engine makes wait for memory: its owner sees why, and nobody takes the wait for a hang."""

from tests.trainer.agent.agent_harness import AgentProcess, queue_job, until
from tests.trainer.agent.stand_in_service import StandInService


async def test_the_owner_sees_that_the_job_waits_and_for_what(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    await agent.start({"awaiting": {"ftjob-one": 0.5}, "steps": 60})
    await until(lambda: job.status == "succeeded", what="job succeeded")
    phases = [report.phase for report in job.reports]
    assert "waiting" in phases
    assert phases.index("waiting") < len(phases) - phases[::-1].index("training") - 1
    assert phases[-1] != "waiting"
    told = [event.message for event in job.events.values() if event.data.get("code") == "awaiting_memory"]
    assert told == ["The job waits for memory: it needs about 1.5 GiB, 0.5 GiB are free."]


async def test_an_engine_of_one_waiting_job_is_not_taken_for_hung(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    await agent.start({"awaiting": {"ftjob-one": 2.5}}, stall_seconds=0.5)
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert len(agent.told("up")) == 1


async def test_an_engine_that_hangs_beside_a_waiting_job_is_still_replaced(
    service: StandInService, agent: AgentProcess
) -> None:
    waiting, hanging = queue_job(service, "waiting"), queue_job(service, "hanging")
    plan = {"awaiting": {"ftjob-waiting": 1.0}, "faults": [{"at": "step:5", "do": "silence", "job": "ftjob-hanging"}]}
    await agent.start(plan, stall_seconds=1.0)
    await until(lambda: waiting.status == hanging.status == "succeeded", what="both succeeded")
    assert len(agent.told("up")) == 2


async def test_a_job_that_only_waited_is_no_suspect(service: StandInService, agent: AgentProcess) -> None:
    waiting, poison = queue_job(service, "waiting"), queue_job(service, "poison")
    faults = [{"at": "step:3", "do": "die", "job": "ftjob-poison", "times": 99}]
    await agent.start({"awaiting": {"ftjob-waiting": 1.5}, "step_seconds": 0.05, "faults": faults})
    await until(lambda: poison.status == "failed" and waiting.status == "succeeded", what="both ended")
    assert "quarantined" not in waiting.codes()


async def test_a_waiting_job_can_be_cancelled(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    await agent.start({"awaiting": {"ftjob-one": 3600}})
    await until(lambda: any(report.phase == "waiting" for report in job.reports), what="waiting")
    job.want = "cancel"
    await until(lambda: job.status == "cancelled", what="job cancelled")
