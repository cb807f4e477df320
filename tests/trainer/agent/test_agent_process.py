"""The agent as a process: how it starts, how it ends, and what it leaves behind."""

import asyncio
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.trainer.agent.agent_harness import AgentProcess, alive, queue_job, until
from tests.trainer.agent.stand_in_service import Job, StandInService
from tests.trainer.agent.stand_in_store import TOKEN
from trainer.children import LAUNCHER

SLOW = {"steps": 100_000, "step_seconds": 0.02, "checkpoint_every": 100_000}


async def training(job: Job) -> None:
    await until(lambda: job.reports and job.reports[-1].step > 3, what="training")


async def test_sigterm_hands_jobs_back_with_a_checkpoint(service: StandInService, agent: AgentProcess) -> None:
    jobs = [queue_job(service, "one"), queue_job(service, "two")]
    await agent.start(SLOW)
    for job in jobs:
        await training(job)
    children = agent.children()
    agent.send(signal.SIGTERM)
    assert await agent.ended() == 0
    for job in jobs:
        assert [finish.outcome for finish in job.finishes] == ["released"]
        assert job.checkpoint is not None
        assert job.checkpoint.step == job.finishes[0].step
    assert len(children) == 2
    assert not any(alive(pid) for pid in children)


async def test_sigterm_ends_in_time_even_if_the_engine_hangs(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    await agent.start({**SLOW, "faults": [{"at": "stop", "do": "silence"}]}, stop_seconds=2.0)
    await training(job)
    children = agent.children()
    agent.send(signal.SIGTERM)
    before = time.monotonic()
    assert await agent.ended() == 0
    assert time.monotonic() - before < 2 + 2, "stop_seconds, and some for a busy machine"
    assert not any(alive(pid) for pid in children)
    assert not job.finishes


async def test_a_second_signal_ends_it_at_once(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    await agent.start({**SLOW, "faults": [{"at": "stop", "do": "silence"}]}, stop_seconds=60.0)
    await training(job)
    children = agent.children()
    agent.send(signal.SIGTERM)
    await until(lambda: "stopping" in agent.log, what="stopping")
    agent.send(signal.SIGTERM)
    assert await agent.ended(5) == -signal.SIGTERM
    await until(lambda: not any(alive(pid) for pid in children), seconds=2, what="children gone")


async def test_an_idle_agent_stops_at_once(service: StandInService, agent: AgentProcess) -> None:
    await agent.start(claim_wait_seconds=30.0)
    await until(lambda: bool(service.calls), what="waiting for a job")
    before = time.monotonic()
    agent.send(signal.SIGTERM)
    assert await agent.ended() == 0
    assert time.monotonic() - before < 3


async def test_children_die_with_a_killed_agent(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service)
    await agent.start(SLOW)
    await training(job)
    children = agent.children()
    assert len(children) == 2
    agent.send(signal.SIGKILL)
    await agent.ended()
    await until(lambda: not any(alive(pid) for pid in children), seconds=2, what="children gone")


async def test_children_never_see_the_worker_token() -> None:
    code = "import os; print(sorted(name for name in os.environ if name.startswith('WEFT')))"
    environment = {"WEFT_TRAINER_WORKER_TOKEN": TOKEN, "WEFT_OTHER": "1"}
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", f'exec "$0" -I -S "$1" $PPID 500 "$0" -c "{code}"', sys.executable, LAUNCHER,
        env=environment, stdout=subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert out.decode().strip() == "['WEFT_OTHER']"


async def test_two_agents_never_share_a_work_folder(
    service: StandInService, agent: AgentProcess, tmp_path: Path
) -> None:
    await agent.start()
    await until(lambda: "engine ready" in agent.log, what="first agent up")
    folder = tmp_path / "second"
    folder.mkdir()
    second = AgentProcess(folder, service)
    try:
        await second.start(work_dir=str(tmp_path / "work"))
        assert await second.ended() == 1
    finally:
        await second.close()
    assert "WEFT_TRAINER_WORK_DIR" in second.log


async def test_leftovers_of_a_killed_agent_are_removed(service: StandInService, agent: AgentProcess) -> None:
    left = agent.folder / "work" / "jobs" / "ftjob-old-e3"
    left.mkdir(parents=True)
    (left / "weights.bin").write_bytes(b"x")
    await agent.start()
    await until(lambda: "engine ready" in agent.log, what="agent up")
    assert not left.exists()


async def test_missing_settings_are_named(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "trainer", cwd=tmp_path, env={"WEFT_TRAINER_JOBS": "0"}, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 2
    assert "WEFT_TRAINER_SERVICE_URL: Field required" in out.decode()
    assert "WEFT_TRAINER_JOBS: Input should be greater than or equal to 1" in out.decode()


def unshare() -> list[str]:
    return [str(shutil.which("unshare")), "--user", "--map-root-user", "--mount"]


def may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*unshare(), "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="needs a mount namespace of its own")
async def test_a_full_disk_gives_the_job_back(service: StandInService, agent: AgentProcess) -> None:
    job = queue_job(service, lines=b'{"messages": []}\n' * 100_000)
    await agent.start(wrapper=mounted(agent.folder / "work"))
    await until(lambda: bool(job.finishes), what="job given back")
    assert job.finishes[0].outcome == "released"
    assert any("No space" in event.message for event in job.events.values())
    await asyncio.sleep(1)  # Time in which it could wrongly claim again and again; nothing to poll for.
    assert job.epoch <= 2, "once it may have been asked for already; then the queue is left to workers that have room"
    assert job.status == "queued"


def mounted(work_dir: Path) -> list[str]:
    """Runs a command with one MiB of disk at `work_dir`, which nobody else sees."""
    work_dir.mkdir()
    return [*unshare(), "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"', str(work_dir)]
