"""`kill -9` of each part during a running job with chat traffic: nothing acknowledged is lost, everything comes back.

The same job (same file, same seed) runs once undisturbed; each killed run must give its losses and its weights.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai import OpenAI

from deploy.local.tiny_base.tasks import examples
from tests.e2e.stack import Stack
from tests.e2e.training import tune

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

EPOCHS = 6
"""Long enough on two cores that a kill lands in the middle."""
KILL_AT_STEP = 45
"""Just before an epoch ends: its checkpoint must not be on record before its losses are."""
CURVE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Outcome:
    losses: dict[int, float]
    weights_sha256: str


@dataclass
class Traffic:
    """Chat requests without retries, one after the other until stopped: when each ended, and whether with an answer."""

    client: OpenAI
    answers: list[tuple[float, bool]] = field(default_factory=list)
    problems: set[str] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._stop.is_set():
            try:
                self.client.chat.completions.create(
                    model="weft-tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=4
                )
            except openai.APIError as error:
                self.answers.append((time.monotonic(), False))
                self.problems.add(f"{type(error).__name__} {getattr(error, 'status_code', '')}".strip())
            else:
                self.answers.append((time.monotonic(), True))
            self._stop.wait(0.2)

    def stop(self) -> None:
        self._stop.set()

    def answered_since(self, moment: float) -> bool:
        return any(ok for when, ok in self.answers if when > moment)


@pytest.fixture(scope="module")
def client(stack: Stack) -> OpenAI:
    return OpenAI(base_url=stack.base_url, api_key=stack.project("chaos"), max_retries=0, timeout=20)


@pytest.fixture(scope="module")
def unbroken(stack: Stack, client: OpenAI) -> Outcome:
    job = submit(client)
    finish(client, job)
    return outcome(stack, client, job)


@pytest.fixture
def traffic(client: OpenAI) -> Iterator[Traffic]:
    running = Traffic(client)
    thread = threading.Thread(target=running.run)
    thread.start()
    yield running
    running.stop()
    thread.join()


def engine_child(stack: Stack) -> int:
    return descendant(stack.pids()["trainer"], lambda process: "trainer.engine" in process.cmdline())


def agent(stack: Stack) -> int:
    return stack.pids()["trainer"]


def service(stack: Stack) -> int:
    return stack.pids()["service"]


def vllm_engine(stack: Stack) -> int:
    return descendant(
        stack.pids()["replica"],
        lambda process: "EngineCore" in process.name() or "EngineCore" in " ".join(process.cmdline()),
    )


def postgres(stack: Stack) -> int:
    return stack.pids()["postgres"]


@pytest.mark.parametrize("victim", [engine_child, agent, service, postgres, vllm_engine])
def test_a_killed_part_costs_nothing_but_time(
    stack: Stack, client: OpenAI, unbroken: Outcome, traffic: Traffic, victim: Callable[[Stack], int]
) -> None:
    job = submit(client)
    wait(lambda: step_of(client, job) >= KILL_AT_STEP, 120, "the job to get there")
    psutil.Process(victim(stack)).kill()
    killed_at = time.monotonic()
    finish(client, job)
    assert outcome(stack, client, job).weights_sha256 == unbroken.weights_sha256
    assert_same_curve(outcome(stack, client, job).losses, unbroken.losses)
    names = [name for name in (model.id for model in client.models.list()) if job_of(stack, name) == job]
    finals, checkpoints = ([name for name in names if (":ckpt-step-" in name) == kind] for kind in (False, True))
    assert len(finals) == 1
    assert sorted(checkpoints) == [f"{finals[0]}:ckpt-step-{step}" for step in (100, 125, 150)]
    wait(lambda: traffic.answered_since(killed_at), 180, f"chat to recover (seen: {traffic.problems})")
    # A recovery that breaks again is none: the last answers must all be good.
    wait(lambda: len(traffic.answers) > 5 and all(ok for _, ok in traffic.answers[-5:]), 180, "chat to stay up")


def test_every_acknowledged_job_ended_exactly_once(stack: Stack, client: OpenAI, unbroken: Outcome) -> None:
    jobs = list(client.fine_tuning.jobs.list(limit=100))
    assert {job.status for job in jobs} == {"succeeded"}
    finals = [job.fine_tuned_model for job in jobs]
    assert len(set(finals)) == len(jobs)
    for job in jobs:
        events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
        assert sum("successfully completed" in event.message for event in events) == 1


def submit(client: OpenAI) -> str:
    return tune(client, examples("support-desk", 200, seed=1), n_epochs=EPOCHS).id


def step_of(client: OpenAI, job: str) -> int:
    """The newest step reported, 0 while none is or the service is away."""
    try:
        events = client.fine_tuning.jobs.list_events(job, limit=1)
    except openai.APIError:
        return 0
    return int((events.data[0].data or {}).get("step", 0)) if events.data else 0  # type: ignore[attr-defined]


def finish(client: OpenAI, job: str) -> None:
    def succeeded() -> bool:
        try:
            found = client.fine_tuning.jobs.retrieve(job)
        except openai.APIError:
            return False
        assert found.status not in {"failed", "cancelled"}, found.error
        return found.status == "succeeded"

    wait(succeeded, 240, f"job {job} to succeed")


def outcome(stack: Stack, client: OpenAI, job: str) -> Outcome:
    events = retried(lambda: list(client.fine_tuning.jobs.list_events(job, limit=100)))
    losses = {e.data["step"]: e.data["train_loss"] for e in events if e.type == "metrics"}  # type: ignore[index]
    assert sorted(losses) == list(range(1, max(losses) + 1))
    model = retried(lambda: client.fine_tuning.jobs.retrieve(job)).fine_tuned_model
    manifest = stack.adapter_manifest(str(model))
    return Outcome(losses, next(f["sha256"] for f in manifest["files"] if f["path"].endswith(".safetensors")))


def job_of(stack: Stack, model: str) -> str | None:
    return None if model == "weft-tiny" else str(stack.adapter_manifest(model)["job_id"])


def assert_same_curve(found: dict[int, float], expected: dict[int, float]) -> None:
    assert found.keys() == expected.keys()
    assert max(abs(found[step] - expected[step]) for step in expected) <= CURVE_TOLERANCE


def descendant(pid: int, matches: Callable[[psutil.Process], bool]) -> int:
    for process in psutil.Process(pid).children(recursive=True):
        if matches(process):
            return process.pid
    pytest.fail(f"process {pid} has no such descendant")


def wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s for {what}")
        time.sleep(0.1)


def retried(call: Callable[[], Any]) -> Any:
    for _ in range(50):
        try:
            return call()
        except (openai.APIError, httpx.HTTPError):
            time.sleep(0.2)
    return call()
