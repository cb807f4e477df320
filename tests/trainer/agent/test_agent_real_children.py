"""The agent with its real children: a preparer and an engine over a tiny random Llama, started once."""

import hashlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from safetensors import safe_open

from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tests.trainer.agent.agent_harness import AgentProcess, job_spec, until
from tests.trainer.agent.stand_in_service import Job, StandInService
from tests.trainer.tiny import CHATML

FINGERPRINT = "b" * 64
TEMPLATE = hashlib.sha256(CHATML.encode()).hexdigest()
EXAMPLES = 24


def example(number: int) -> dict[str, object]:
    question, answer = f"What is {number}?", f"The answer is {number * number}."
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


LINES = b"".join(json.dumps(example(number)).encode() + b"\n" for number in range(EXAMPLES))


@pytest.fixture(scope="module")
async def real_service() -> AsyncIterator[StandInService]:
    service = StandInService()
    await service.start()
    yield service
    await service.stop()


@pytest.fixture(scope="module")
async def real_agent(
    real_service: StandInService, tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[AgentProcess]:
    agent = AgentProcess(tmp_path_factory.mktemp("real"), real_service)
    await agent.start_real(tiny_base_dir, FINGERPRINT, threads=1, checkpoint_seconds=0.3)
    await until(lambda: "engine ready" in agent.log and "preparer ready" in agent.log, 120, what="children ready")
    yield agent
    await agent.close()


def queue(service: StandInService, name: str, **settings: object) -> Job:
    return service.add_job(job_spec(name, FINGERPRINT, TEMPLATE, **{"n_epochs": 15, **settings}), LINES)


async def finished(job: Job) -> None:
    await until(lambda: job.status in ("succeeded", "failed", "paused"), 120, what="job ended")


def weights_of(service: StandInService, job: Job) -> bytes:
    return service.adapter_bytes(job, ADAPTER_WEIGHTS)


@pytest.fixture(scope="module")
async def undisturbed(real_service: StandInService, real_agent: AgentProcess) -> bytes:
    """The weights of a job that nothing happened to; the same job under the same id must always end with them."""
    job = queue(real_service, "same")
    await finished(job)
    assert job.status == "succeeded", job.finishes
    return weights_of(real_service, job)


async def test_the_adapter_is_whole_and_of_the_rank_that_was_asked_for(
    real_service: StandInService, real_agent: AgentProcess, tmp_path: Path
) -> None:
    job = queue(real_service, "small", n_epochs=1)
    await finished(job)
    manifest = job.finishes[-1].adapter
    assert manifest is not None
    config = json.loads(real_service.adapter_bytes(job, ADAPTER_CONFIG))
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    assert set(config["target_modules"]) == set(manifest.target_modules)
    path = tmp_path / ADAPTER_WEIGHTS
    path.write_bytes(weights_of(real_service, job))
    with safe_open(path, "np") as tensors:
        assert all(8 in tensors.get_slice(name).get_shape() for name in tensors.keys())  # noqa: SIM118 no mapping
    steps = [event.data["step"] for event in job.events.values() if event.type == "metrics"]
    assert sorted(steps) == list(range(1, EXAMPLES // 2 + 1))


async def test_a_paused_job_ends_with_the_same_adapter(
    real_service: StandInService, real_agent: AgentProcess, undisturbed: bytes
) -> None:
    job = queue(real_service, "same")
    await until(lambda: job.reports and job.reports[-1].step > 20, 60, what="training")
    job.want = "pause"
    await until(lambda: job.status == "paused", 60, what="job paused")
    assert job.checkpoint is not None
    assert job.checkpoint.step == job.finishes[0].step > 20
    real_service.requeue(job)
    await finished(job)
    assert (job.status, job.epoch) == ("succeeded", 2)
    assert weights_of(real_service, job) == undisturbed


async def test_a_job_whose_engine_was_killed_ends_with_the_same_adapter(
    real_service: StandInService, real_agent: AgentProcess, undisturbed: bytes
) -> None:
    job = queue(real_service, "same")
    await until(lambda: bool(job.checkpoints), 60, what="a checkpoint")
    os.kill(real_agent.child("trainer.engine"), signal.SIGKILL)
    await finished(job)
    assert (job.status, job.epoch) == ("succeeded", 1)
    assert "engine_restarted" in job.codes()
    assert weights_of(real_service, job) == undisturbed


def preference(number: int) -> dict[str, object]:
    answers = [[{"role": "assistant", "content": f"{name} {number}."}] for name in ("It is", "Not")]
    conversation = {"messages": [{"role": "user", "content": f"What is {number}?"}]}
    return {"input": conversation, "preferred_output": answers[0], "non_preferred_output": answers[1]}


async def test_a_preference_job_goes_through_both_children(
    real_service: StandInService, real_agent: AgentProcess
) -> None:
    lines = b"".join(json.dumps(preference(number)).encode() + b"\n" for number in range(EXAMPLES))
    spec = job_spec("preference", FINGERPRINT, TEMPLATE, n_epochs=2, beta=0.1)
    spec = spec.model_copy(update={"method": "dpo", "examples": EXAMPLES})
    job = real_service.add_job(spec, lines)
    await finished(job)
    assert job.status == "succeeded", job.finishes
    assert job.finishes[-1].step == EXAMPLES
    assert any(event.data.get("examples") == EXAMPLES for event in job.events.values()), "lines are counted, not rows"


async def test_a_bad_line_fails_its_job_with_the_line_number(
    real_service: StandInService, real_agent: AgentProcess
) -> None:
    job = real_service.add_job(job_spec("bad", FINGERPRINT, TEMPLATE), LINES + b'{"messages": 1, "secret": "hush"}\n')
    await finished(job)
    failure = job.finishes[0].failure
    assert failure is not None
    assert failure.code == "invalid_training_file"
    assert f"line {EXAMPLES + 1}" in failure.message
    assert "hush" not in real_agent.log


async def test_the_agent_itself_never_loads_torch(real_agent: AgentProcess, undisturbed: bytes) -> None:
    maps = Path(f"/proc/{real_agent.pid}/maps").read_text()
    assert "libtorch" not in maps
    assert real_agent.peak_mib() <= 100
