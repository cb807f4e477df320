"""Jobs that saw the engine die twice go on alone, until it is known which of them kills engines; no good one fails."""

import os
import signal

from tests.trainer.agent.agent_harness import AgentProcess, alive, queue_job, until
from tests.trainer.agent.stand_in_service import Job, StandInService

DEADLY = {"at": "step:15", "do": "die", "times": 99}
"""Late enough for every job that is claimed together to be there."""


def deadly(name: str) -> dict[str, object]:
    return {**DEADLY, "job": f"ftjob-{name}"}


def assert_convicted(job: Job) -> None:
    failure = job.finishes[0].failure
    assert failure is not None
    assert failure.code == "engine_crashed"
    assert "ended 3 times" in failure.message
    assert job.epoch == 1


async def test_one_job_that_kills_engines_costs_seven_good_ones_nothing_but_a_wait(
    service: StandInService, agent: AgentProcess
) -> None:
    names = [f"good{number}" for number in range(7)]
    names.insert(3, "poison")
    jobs = {name: queue_job(service, name) for name in names}
    poison = jobs.pop("poison")
    await agent.start({"steps": 60, "step_seconds": 0.04, "checkpoint_every": 20, "faults": [deadly("poison")]})
    await until(lambda: all("quarantined" in job.codes() for job in [poison, *jobs.values()]), what="all suspects")
    late = queue_job(service, "late")
    await until(lambda: late.status == "succeeded" and poison.status == "failed", what="late done, poison found")
    assert_convicted(poison)
    await until(lambda: all(job.status == "succeeded" for job in jobs.values()), 60, what="good jobs succeeded")
    assert len(agent.told("die")) == 3
    alone = [start["job"] for start in agent.told("start") if start["pid"] == agent.engines_of("ftjob-good6")[2]]
    assert alone[0] == "ftjob-good6", "the newest claim goes first"
    assert all(job.epoch == 1 for job in [late, *jobs.values()])
    shared = agent.engines_of("ftjob-late")
    assert len(shared) == 1, "nobody disturbed it"
    assert shared[0] not in agent.engines_of("ftjob-poison"), "where others are it never came back to"
    back = [name for name in jobs if agent.engines_of(f"ftjob-{name}")[-1] == shared[0]]
    assert back, "who has proven itself goes on beside the others"
    assert all("quarantine_over" in jobs[name].codes() for name in back)
    await until(lambda: len(agent.children()) == 2, what="quarantine over")


async def test_two_that_kill_engines_have_a_turn_each(service: StandInService, agent: AgentProcess) -> None:
    first, second = queue_job(service, "first"), queue_job(service, "second")
    most: list[int] = []
    await agent.start({"steps": 40, "step_seconds": 0.02, "faults": [deadly("first"), deadly("second")]})
    await until(
        lambda: most.append(len(agent.children())) or first.status == second.status == "failed", what="both failed"
    )
    assert_convicted(first)
    assert_convicted(second)
    assert len(agent.told("die")) == 4, "two together, then one each"
    assert max(most) <= 3, "the preparer, the shared engine and one in quarantine"
    good = queue_job(service, "good")
    await until(lambda: good.status == "succeeded", what="good job succeeded")


async def test_a_late_killer_is_found_though_it_makes_checkpoints(service: StandInService, agent: AgentProcess) -> None:
    """Its deaths come long after its checkpoints, and a turn may end at a checkpoint before the next death."""
    poison, good = queue_job(service, "poison"), queue_job(service, "good")
    faults = [{**deadly("poison"), "at": "step:30"}]
    await agent.start({"steps": 80, "step_seconds": 0.02, "checkpoint_every": 25, "faults": faults})
    await until(lambda: poison.status == "failed" and good.status == "succeeded", what="both ended")
    assert_convicted(poison)
    assert good.epoch == 1


async def test_new_jobs_are_claimed_while_the_only_place_is_taken_by_a_suspect(
    service: StandInService, agent: AgentProcess
) -> None:
    suspect = queue_job(service, "suspect")
    faults = [{**deadly("suspect"), "times": 2}]
    await agent.start({"steps": 400, "step_seconds": 0.02, "checkpoint_every": 1000, "faults": faults}, jobs=1)
    await until(lambda: "quarantined" in suspect.codes(), what="quarantined")
    other = queue_job(service, "other")
    await until(lambda: bool(agent.engines_of("ftjob-other")), what="other started")
    assert suspect.status == other.status == "running"


async def test_a_suspect_that_finishes_was_none_and_its_process_ends(
    service: StandInService, agent: AgentProcess
) -> None:
    job = queue_job(service)
    await agent.start({"steps": 20, "faults": [{**deadly("one"), "times": 2}]})
    await until(lambda: job.status == "succeeded", what="job succeeded")
    assert job.epoch == 1
    shared, _, own = agent.engines_of("ftjob-one")
    assert own != shared
    await until(lambda: not alive(own), what="own engine ended")
    again = queue_job(service, "again")
    await until(lambda: again.status == "succeeded", what="next job succeeded")
    assert "quarantined" not in again.codes()


async def test_a_paused_suspect_comes_back_as_one(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    plan = {"steps": 300, "step_seconds": 0.02, "checkpoint_every": 1000, "faults": [{**deadly("one"), "times": 2}]}
    await agent.start(plan)
    await until(lambda: len(agent.told("start")) == 3 and job.reports[-1].step > 3, what="training alone")
    job.want = "pause"
    await until(lambda: job.status == "paused", what="paused")
    await until(lambda: len(agent.children()) == 2, what="own engine ended")
    shared = agent.children()
    service.requeue(job)
    await until(lambda: len(agent.told("start")) == 4, what="started again")
    assert agent.engines_of("ftjob-one")[-1] not in shared


async def test_a_suspect_in_line_can_be_cancelled(service: StandInService, agent: AgentProcess) -> None:
    jobs = [queue_job(service, name) for name in ("first", "second")]
    faults = [{**DEADLY, "times": 2}]
    await agent.start({"steps": 10_000, "step_seconds": 0.02, "checkpoint_every": 100_000, "faults": faults})
    await until(lambda: all("quarantined" in job.codes() for job in jobs), what="both suspects")
    await until(lambda: len(agent.told("start")) == 5, what="one has its turn")
    turn = agent.told("start")[-1]["job"]
    waiting = next(job for job in jobs if job.spec.job_id != turn)
    assert waiting.reports[-1].phase == "waiting"
    waiting.want = "cancel"
    await until(lambda: waiting.status == "cancelled", what="cancelled")
    assert service.jobs[turn].status == "running"


async def test_where_memory_holds_one_engine_a_suspect_is_handed_on(
    service: StandInService, agent: AgentProcess
) -> None:
    job = queue_job(service)
    await agent.start({"steps": 60, "engines": 1, "faults": [{**deadly("one"), "times": 2}]})
    await until(lambda: bool(job.finishes), what="job given back")
    assert job.finishes[0].outcome == "released"
    assert "worker_unfit" in job.codes()
    assert len(agent.told("no_memory")) == 3
    assert agent.log.count("trainer: engine ended") == 2, "the shared engine has gone on"


async def test_the_process_in_quarantine_dies_with_the_agent(service: StandInService, agent: AgentProcess) -> None:
    queue_job(service)
    plan = {"steps": 10_000, "step_seconds": 0.02, "checkpoint_every": 100_000}
    await agent.start({**plan, "faults": [{**deadly("one"), "times": 2}]})
    await until(lambda: len(agent.told("start")) == 3, what="training alone")
    children = agent.children()
    assert len(children) == 3
    os.kill(agent.pid, signal.SIGKILL)
    await agent.ended()
    await until(lambda: not any(alive(pid) for pid in children), seconds=2, what="children gone")


async def test_sigterm_hands_back_the_job_in_quarantine_too(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    plan = {"steps": 10_000, "step_seconds": 0.02, "checkpoint_every": 100_000}
    await agent.start({**plan, "faults": [{**deadly("one"), "times": 2}]})
    await until(lambda: len(agent.told("start")) == 3 and job.reports[-1].step > 3, what="training alone")
    children = agent.children()
    agent.send(signal.SIGTERM)
    assert await agent.ended() == 0
    assert [finish.outcome for finish in job.finishes] == ["released"]
    assert job.checkpoint is not None
    assert job.checkpoint.step == job.finishes[0].step
    assert not any(alive(pid) for pid in children)
