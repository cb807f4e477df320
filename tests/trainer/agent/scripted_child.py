"""A child that follows a plan: speaks the protocol as the real ones do, trains nothing, and fails where it is told to.

    python scripted_child.py preparer|engine PLAN

PLAN is a JSON file. `steps`, `step_seconds`, `checkpoint_every`, `model_every` shape every job; `faults` is a list of
{"at": "prepare" | "start" | "step:N" | "stop", "do": "die" | "silence" | "garbage" | "fail", "times": n, "job": id}.
`awaiting` says by job for how many seconds it waits for memory, `engines` how many engine processes memory holds. How
often a fault has happened is kept beside the plan, so that it can outlive the process that it ends.
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

from service.contracts.worker import CheckpointMetrics, JobFailure
from trainer.protocol import (
    AwaitingMemory,
    CheckpointModelWritten,
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
        self.model_every = plan.get("model_every", 0)
        self.adapter_step = plan.get("adapter_step")
        self.awaiting = plan.get("awaiting", {})
        self.engines = plan.get("engines", 9)
        self.stop_seconds = plan.get("stop_seconds", 0.0)
        self.fingerprint = plan.get("fingerprint", "f" * 64)
        self.template = plan.get("template")
        self.big_events = plan.get("big_events", 0)
        self._faults = plan.get("faults", [])

    def told(self, what: str, **more: Any) -> None:
        with self.path.with_suffix(".told").open("a") as log:
            log.write(json.dumps({"what": what, "at": time.monotonic(), "pid": os.getpid(), **more}) + "\n")

    def hold_memory(self) -> None:
        """Ends this process if as many engines as memory holds are up."""
        place = self.path.with_suffix(".engines")
        pids = [int(pid) for pid in place.read_text().split()] if place.exists() else []
        up = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        if len(up) >= self.engines:
            self.told("no_memory")
            sys.exit(1)
        place.write_text(" ".join(map(str, [*up, os.getpid()])))
        self.told("up")

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
        begun = Path(start.adapter_dir) if start.adapter_dir else None
        files = sorted(path.name for path in begun.iterdir()) if begun else None
        plan.told("start", job=self.job, step=self.step, adapter=files)
        self.from_time = time.monotonic() + plan.awaiting.get(self.job, 0)
        if self.job in plan.awaiting:
            for _ in range(2):
                say(AwaitingMemory(job_id=self.job, needed_bytes=6 << 28, free_bytes=1 << 29))

    def turn(self) -> bool:
        """One step; true when it was the last."""
        if time.monotonic() < self.from_time:
            return False
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
        if self.plan.model_every and self.step % self.plan.model_every == 0:
            self.write_model()
        if self.step % self.plan.checkpoint_every == 0:
            self.save()
        return False

    def write_model(self) -> None:
        folder = self._adapter(f"model-{self.step}")
        metrics = CheckpointMetrics(step=self.step, train_loss=1 / self.step)
        model = CheckpointModelWritten(
            job_id=self.job, step=self.step, directory=str(folder), target_modules=("q_proj",), metrics=metrics
        )
        say(model)

    def _adapter(self, name: str) -> Path:
        folder = Path(self.start.work_dir) / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(self.job.encode() + bytes([self.step % 256]) * 4096)
        return folder

    def save(self) -> None:
        folder = Path(self.start.work_dir) / f"step-{self.step}"
        folder.mkdir(exist_ok=True)
        (folder / "state.json").write_text(json.dumps({"step": self.step}))
        (folder / "weights.bin").write_bytes(bytes([self.step % 256]) * 4096)
        say(CheckpointWritten(job_id=self.job, step=self.step, trained_tokens=self.step, directory=str(folder)))

    def _events(self) -> Any:
        tail = self.job.removeprefix("ftjob-")
        yield {"id": f"ftevent-{tail}-m{self.step}", "type": "metrics", "message": "step", "data": {"step": self.step}}
        for number in range(self.plan.big_events):
            yield {"id": f"ftevent-{tail}-b{self.step}-{number}", "message": "x" * 1900}

    def _finish(self) -> bool:
        say(
            Trained(
                job_id=self.job,
                step=self.step,
                adapter_step=self.plan.adapter_step,
                trained_tokens=self.step,
                directory=str(self._adapter("adapter")),
                target_modules=("q_proj",),
            )
        )
        return True


def train_forever(plan: Plan) -> None:
    commands: queue.SimpleQueue[Start | Stop] = queue.SimpleQueue()
    threading.Thread(target=read, args=(commands,), daemon=True).start()
    plan.hold_memory()
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
