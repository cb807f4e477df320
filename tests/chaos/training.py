"""Rounds of killed, evicted and poisoned training: `make chaos-training`. The last line is JSON.

In each round the same healthy jobs of several tenants train on a real engine process, and seeded mishaps strike at
random moments: `kill -9` of the engine, eviction of jobs that come back from their checkpoints, jobs that diverge, that
are malformed, that are too large. Every healthy job must end once, with the adapter of a run that nothing disturbed.
Memory is so short that jobs wait for each other. Fails where a job is lost, doubled or more than 1e-5 off.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file

from tests.chaos.fleet import Sick, healthy, sick, to_be_poisoned
from tests.chaos.forked import ForkedEngine
from tests.trainer.tiny import write_base
from trainer.engine.base import load
from trainer.protocol import (
    AwaitingMemory,
    CheckpointWritten,
    FromEngine,
    JobFailed,
    Progress,
    Start,
    Stop,
    Stopped,
    Trained,
)

TOLERANCE = 1e-5
ROUND_SECONDS = 60.0
TOKEN_BUDGET, MEMORY_BYTES = 512, 17 << 20
"""Jobs share passes, and there is less beside the base than the healthy ones need together."""
CHECKPOINT_SECONDS = 0.05
MISHAPS = (1, 3)
"""Fewest and most in a round."""
LATEST = 0.9
"""Of a round's steps: after it there may be nobody left to strike."""
PAUSE_SECONDS = 0.02
"""At most, from the step that a mishap waits for to the mishap: it strikes amid a step, not only after one."""

Weights = dict[str, torch.Tensor]
State = Literal["running", "stopping", "stopped", "ended"]


class Broken(Exception):
    """Something happened that must not."""


@dataclass
class Job:
    """One job of a round, as the agent sees it."""

    start: Start
    codes: frozenset[str] = frozenset()
    """What a sick one may fail with."""
    state: State = "running"
    starts: int = 0
    checkpoint: str | None = None
    end: Trained | JobFailed | None = None
    told: set[int] = field(default_factory=set)
    """Steps."""

    @property
    def job_id(self) -> str:
        return self.start.spec.job_id


class Engines:
    """One engine process after the other over one warm base."""

    def __init__(self, root: Path) -> None:
        torch.set_num_threads(1)
        base = write_base(root / "base")
        self._warm = load(str(base), "cpu", threads=1, token_budget=TOKEN_BUDGET, memory_bytes=MEMORY_BYTES)
        self._log = root / "engine.log"
        self.started = 0
        self.now = self._next()

    def kill(self) -> list[FromEngine]:
        said = self.now.kill()
        self.now = self._next()
        return said

    def _next(self) -> ForkedEngine:
        self.started += 1
        return ForkedEngine(*self._warm, CHECKPOINT_SECONDS, self._log)


class Round:
    """Jobs that train together until each has ended, and what happens to them."""

    def __init__(self, engines: Engines, work: Path, counts: Counter[str]) -> None:
        self._engines, self._work, self._counts = engines, work, counts
        self.jobs: dict[str, Job] = {}
        self.steps = 0
        """Told so far of healthy jobs, those that a new start told again included."""
        self._deadline = time.monotonic() + ROUND_SECONDS

    def add(self, start: Start, codes: frozenset[str] = frozenset()) -> None:
        job = self.jobs[start.spec.job_id] = Job(start, codes)
        self._begin(job)

    def listen(self, seconds: float) -> None:
        """Takes what the engine says, or waits so long."""
        if time.monotonic() > self._deadline:
            raise Broken(f"lost: {sorted(job.job_id for job in self.open())}")
        for line in self._engines.now.lines(seconds):
            self._hear(line)
        if self._engines.now.gone:
            raise Broken("the engine ended by itself")
        if not self.open("stopping"):
            # In the other order they come into each other's slots.
            for job in reversed(self.open("stopped")):
                self._begin(job)

    def open(self, *states: State) -> list[Job]:
        return [job for job in self.jobs.values() if job.state in (states or ("running", "stopping", "stopped"))]

    def kill(self) -> None:
        """All jobs that have not ended go on in a new engine."""
        self._counts["kills"] += 1
        for line in self._engines.kill():
            self._hear(line)
        for job in self.open():
            self._begin(job)

    def evict(self, chance: random.Random) -> None:
        running = [job for job in self.open("running") if not job.codes]
        for job in chance.sample(running, min(2, len(running))):
            self._counts["evictions"] += 1
            job.state = "stopping"
            self._engines.now.send(Stop(job_id=job.job_id, save=True))

    def infect(self, sick: Sick) -> None:
        if sick.start.spec.job_id not in self.jobs:
            self._counts["sick jobs"] += 1
            self.add(sick.start, sick.codes)

    def judge(self) -> None:
        for job in self.jobs.values():
            if isinstance(job.end, JobFailed) and job.end.failure.code in job.codes:
                continue
            if not isinstance(job.end, Trained) or job.codes:
                raise Broken(f"{job.job_id} ended as {job.end}")
            if not Path(job.end.directory).is_relative_to(self._folder(job)):
                raise Broken(f"{job.job_id} ended in an earlier start")
            if job.told != set(range(1, job.end.step + 1)):
                raise Broken(f"{job.job_id}: of {job.end.step} steps only {sorted(job.told)} were told")

    def adapters(self) -> dict[str, Weights]:
        """Of the healthy jobs."""
        ends = {job.job_id: job.end for job in self.jobs.values() if isinstance(job.end, Trained)}
        return {name: load_file(Path(end.directory) / "adapter_model.safetensors") for name, end in ends.items()}

    def _folder(self, job: Job) -> Path:
        return self._work / job.job_id / str(job.starts)

    def _begin(self, job: Job) -> None:
        """As the agent does: each start has a folder of its own, and resumes from the newest checkpoint."""
        job.state, job.starts = "running", job.starts + 1
        self._folder(job).mkdir(parents=True)
        update = {"work_dir": str(self._folder(job)), "checkpoint_dir": job.checkpoint or job.start.checkpoint_dir}
        self._engines.now.send(job.start.model_copy(update=update))

    def _hear(self, line: FromEngine) -> None:
        job = self.jobs.get(getattr(line, "job_id", ""))
        if job is None or job.state == "ended":
            raise Broken(f"a line about no job, or one that has ended: {line}")
        match line:
            case Progress():
                told = [int(str(event.data["step"])) for event in line.events if event.type == "metrics"]
                job.told.update(told)
                self.steps += 0 if job.codes else len(told)
            case CheckpointWritten():
                job.checkpoint = line.directory
            case AwaitingMemory():
                self._counts["waits for memory"] += 1
            case Stopped():
                job.state = "stopped"
            case Trained() | JobFailed():
                job.state, job.end = "ended", line
            case _:
                pass  # An engine that is ready, and checkpoint models: nothing to keep.


class Chaos:
    """Rounds, each compared with the first, which nothing disturbs."""

    def __init__(self, root: Path) -> None:
        self._root, self._number = root, 0
        self.counts: Counter[str] = Counter()
        self.engines = Engines(root)
        self._fleet, self._sick = healthy(root / "jobs"), list(sick(root / "sick", self._checkpoint()).values())
        undisturbed = self._played(random.Random(0), [])
        self._expected, self._steps = undisturbed.adapters(), undisturbed.steps
        self.differences: list[float] = []

    def run(self, seed: int) -> None:
        """One round. Raises Broken."""
        chance = random.Random(seed)
        last = int(LATEST * self._steps)
        moments = sorted(chance.randint(0, last) for _ in range(chance.randint(*MISHAPS)))
        found = self._played(chance, moments).adapters()
        if found.keys() != self._expected.keys():
            raise Broken(f"lost: {sorted(self._expected.keys() - found.keys())}")
        for job_id, weights in found.items():
            expected = self._expected[job_id]
            self.differences.append(max(float((weights[name] - one).abs().max()) for name, one in expected.items()))
            if not self.differences[-1] <= TOLERANCE:
                raise Broken(f"{job_id}: weights differ by {self.differences[-1]}")

    def _played(self, chance: random.Random, moments: list[int]) -> Round:
        """A whole round; moments: the steps told before each mishap, in order, so that a slow machine has them too."""
        one = self._round()
        for command in chance.sample(self._fleet, len(self._fleet)):
            one.add(command)
        while one.open():
            if moments and one.steps >= moments[0]:
                moments.pop(0)
                time.sleep(chance.uniform(0, PAUSE_SECONDS))
                self._strike(one, chance)
            one.listen(1.0)
        one.judge()
        return one

    def _strike(self, one: Round, chance: random.Random) -> None:
        match chance.choice(("kill", "evict", "infect")):
            case "kill":
                one.kill()
            case "evict":
                one.evict(chance)
            case _:
                for patient in chance.sample(self._sick, 2):
                    one.infect(patient)

    def _round(self) -> Round:
        shutil.rmtree(self._root / "work" / str(self._number), ignore_errors=True)
        self._number += 1
        return Round(self.engines, self._root / "work" / str(self._number), self.counts)

    def _checkpoint(self) -> Path:
        """One that a job has left behind, to be poisoned."""
        one, command = self._round(), to_be_poisoned(self._root / "sick")
        one.add(command)
        job = one.jobs[command.spec.job_id]
        while job.checkpoint is None:
            one.listen(1.0)
        self.engines.kill()
        return Path(shutil.copytree(job.checkpoint, self._root / "poisoned"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill, evict and poison training; no healthy job may notice.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    options = parser.parse_args()
    started, broken, done = time.monotonic(), None, 0
    with tempfile.TemporaryDirectory() as folder:
        chaos = Chaos(Path(folder))
        try:
            for done in range(options.rounds):
                chaos.run(options.seed + done)
                print(f"\rround {done + 1} of {options.rounds}", end="", file=sys.stderr, flush=True)
            done = options.rounds
        except Broken as error:
            broken = f"round with seed {options.seed + done}: {error}"
        if (code := chaos.engines.now.end()) and not broken:
            broken = f"the engine's exit code is {code}"
    figures = {
        "met": broken is None,
        "broken": broken,
        "rounds": done,
        "engines": chaos.engines.started,
        **chaos.counts,
        "healthy jobs": len(chaos.differences),
        "bitwise equal": sum(off == 0 for off in chaos.differences),
        "largest difference": max(chaos.differences, default=0.0),
        "seconds": round(time.monotonic() - started, 1),
    }
    print("\n" + json.dumps(figures))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
