"""A child that follows a plan: speaks the protocol as the real ones do, trains nothing, and fails where it is told to.

    python scripted_child.py preparer|engine PLAN

PLAN is a JSON file. `steps`, `step_seconds`, `checkpoint_every` shape every job; `faults` is a list of
{"at": "prepare" | "start" | "step:N" | "stop", "do": "die" | "silence" | "garbage" | "fail", "times": n, "job": id}.
How often a fault has happened is kept beside the plan, so that it can outlive the process that it ends.
What the child is told is appended to `PLAN.told`, one JSON line each with the time.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from service.contracts.worker import JobFailure
from trainer.protocol import (
    CheckpointWritten,
    EngineReady,
    JobFailed,
    Prepare,
    Prepared,
    PreparerReady,
    Progress,
    Start,
    Stop,
    Stopped,
    Trained,
    to_engine,
)


def say(line: Any) -> None:
    os.write(1, line.model_dump_json().encode() + b"\n")


class Plan:
    def __init__(self, path: Path) -> None:
        self.path = path
        plan = json.loads(path.read_text())
        if plan.get("unstartable"):
            sys.exit(3)
        self.steps = plan.get("steps", 10)
        self.step_seconds = plan.get("step_seconds", 0.01)
        self.checkpoint_every = plan.get("checkpoint_every", 4)
        self.stop_seconds = plan.get("stop_seconds", 0.0)
        self.fingerprint = plan.get("fingerprint", "f" * 64)
        self.template = plan.get("template")
        self.big_events = plan.get("big_events", 0)
        self._faults = plan.get("faults", [])

    def told(self, what: str, **more: Any) -> None:
        with self.path.with_suffix(".told").open("a") as log:
            log.write(json.dumps({"what": what, "at": time.monotonic(), "pid": os.getpid(), **more}) + "\n")

    def meet(self, at: str, job: str) -> bool:
        """Does what is planned for this moment; true where the job is to fail."""
        for number, fault in enumerate(self._faults):
            if fault["at"] != at or fault.get("job", job) != job:
                continue
            counter = self.path.with_suffix(f".fault{number}")
            done = len(counter.read_text()) if counter.exists() else 0
            if done >= fault.get("times", 1):
                continue
            counter.write_text("x" * (done + 1))
            self.told(fault["do"], moment=at)
            if fault["do"] == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault["do"] == "silence":
                time.sleep(3600)
            if fault["do"] == "garbage":
                os.write(1, b'{"type": "progress", "secret": \n')
            if fault["do"] == "fail":
                return True
        return False


def prepare_forever(plan: Plan) -> None:
    say(PreparerReady(chat_template_sha256=plan.template))
    for raw in sys.stdin.buffer:
        command = Prepare.model_validate_json(raw)
        plan.told("prepare", job=command.job_id)
        plan.meet("prepare", command.job_id)
        Path(command.out_dir).mkdir()
        lines = Path(command.path).read_bytes().count(b"\n")
        job, role = command.job_id, command.role
        say(Prepared(job_id=job, role=role, examples=lines, tokens=lines, trained_tokens=lines, truncated=0))


class Training:
    """One resident job, a step a turn."""

    def __init__(self, plan: Plan, start: Start) -> None:
        self.plan, self.start, self.job = plan, start, start.spec.job_id
        self.step = 0
        if start.checkpoint_dir:
            self.step = json.loads((Path(start.checkpoint_dir) / "state.json").read_text())["step"]
        plan.told("start", job=self.job, step=self.step)

    def turn(self) -> bool:
        """One step; true when it was the last."""
        self.step += 1
        if self.plan.meet(f"step:{self.step}", self.job):
            failure = JobFailure(code="loss_diverged", message="It diverged.")
            say(JobFailed(job_id=self.job, step=self.step, trained_tokens=self.step, failure=failure))
            return True
        say(
            Progress(
                job_id=self.job,
                step=self.step,
                total_steps=self.plan.steps,
                trained_tokens=self.step,
                events=tuple(self._events()),
            )
        )
        if self.step == self.plan.steps:
            return self._finish()
        if self.step % self.plan.checkpoint_every == 0:
            self.save()
        return False

    def save(self) -> None:
        folder = Path(self.start.work_dir) / f"step-{self.step}"
        folder.mkdir()
        (folder / "state.json").write_text(json.dumps({"step": self.step}))
        (folder / "weights.bin").write_bytes(bytes([self.step % 256]) * 4096)
        say(CheckpointWritten(job_id=self.job, step=self.step, trained_tokens=self.step, directory=str(folder)))

    def _events(self) -> Any:
        tail = self.job.removeprefix("ftjob-")
        yield {"id": f"ftevent-{tail}-m{self.step}", "type": "metrics", "message": "step", "data": {"step": self.step}}
        for number in range(self.plan.big_events):
            yield {"id": f"ftevent-{tail}-b{self.step}-{number}", "message": "x" * 1900}

    def _finish(self) -> bool:
        folder = Path(self.start.work_dir) / "adapter"
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(self.job.encode() + bytes([self.step % 256]) * 4096)
        say(
            Trained(
                job_id=self.job,
                step=self.step,
                trained_tokens=self.step,
                directory=str(folder),
                target_modules=("q_proj",),
            )
        )
        return True


def train_forever(plan: Plan) -> None:
    commands: queue.SimpleQueue[Start | Stop] = queue.SimpleQueue()
    threading.Thread(target=read, args=(commands,), daemon=True).start()
    say(EngineReady(base_fingerprint=plan.fingerprint, load_seconds=0.0))
    jobs: dict[str, Training] = {}
    while True:
        while not jobs or not commands.empty():
            obey(plan, commands.get(), jobs)
        for job, training in list(jobs.items()):
            if training.turn():
                del jobs[job]
        time.sleep(plan.step_seconds)


def obey(plan: Plan, command: Start | Stop, jobs: dict[str, Training]) -> None:
    if isinstance(command, Start):
        plan.meet("start", command.spec.job_id)
        jobs[command.spec.job_id] = Training(plan, command)
        return
    plan.told("stop", job=command.job_id, save=command.save)
    plan.meet("stop", command.job_id)
    time.sleep(plan.stop_seconds)
    if training := jobs.pop(command.job_id, None):
        if command.save and training.step:
            training.save()
        say(Stopped(job_id=command.job_id, step=training.step, trained_tokens=training.step))


def read(commands: "queue.SimpleQueue[Start | Stop]") -> None:
    for raw in sys.stdin.buffer:
        commands.put(to_engine.validate_json(raw))
    os._exit(0)


if __name__ == "__main__":
    role, path = sys.argv[1:]
    {"preparer": prepare_forever, "engine": train_forever}[role](Plan(Path(path)))
