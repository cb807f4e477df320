"""One malformed, one diverging and one oversized job among seven good ones, through the loop that serves the agent."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.engine.jobs import start, write_rows
from tests.trainer.engine.test_engine_isolation import Tight
from trainer.engine.engine import Engine
from trainer.engine.failures import as_failure
from trainer.engine.plan import Row
from trainer.engine.runner import JobRunner
from trainer.engine.scheduler import Scheduler
from trainer.engine.turns import step
from trainer.protocol import JobFailed, Start, Trained

GOOD = 7
LARGEST_PASS = 400
"""Padded tokens that this device's memory holds."""


def same_rows(seed: int, length: int = 24, count: int = 6) -> list[Row]:
    random = np.random.default_rng(seed)
    ones = np.ones(length, dtype=np.float32)
    return [Row(random.integers(4, 384, length).astype(np.int32), ones) for _ in range(count)]


def job(root: Path, job_id: str, made: list[Row], learning_rate: float = 1e-2) -> Start:
    folder = root / job_id / "training"
    if not folder.exists():
        write_rows(folder, made)
    return start(root, job_id, count=len(made), learning_rate=learning_rate)


class Loop:
    """Steps jobs until none is left; one that cannot start fails as the server has it fail."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.runners: list[JobRunner] = []
        self.ended: dict[str, Trained | JobFailed] = {}

    def run(self, commands: Iterable[Start]) -> None:
        for command in commands:
            try:
                self.runners.append(JobRunner(self._engine, command, checkpoint_seconds=1e9))
            except Exception as error:
                failed = JobFailed(job_id=command.spec.job_id, step=0, trained_tokens=0, failure=as_failure(error))
                self.ended[failed.job_id] = failed
        scheduler: Scheduler[JobRunner] = Scheduler(self._engine.shared_budget)
        while self.runners:
            step(self._engine, scheduler, list(self.runners), self._guard)

    def _guard(self, runner: JobRunner, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            runner.failed(error)
        if runner.finished:
            self.runners.remove(runner)
            last = runner.outbox[-1]
            assert isinstance(last, Trained | JobFailed)
            self.ended[runner.job_id] = last


def test_three_bad_jobs_among_seven_good_ones_change_nothing_for_them(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._passes._stepper, "train", Tight(engine, LARGEST_PASS).train)
    good = [job(tmp_path, f"ftjob-{number}", same_rows(number)) for number in range(GOOD)]
    undisturbed = Loop(engine)
    undisturbed.run(good)
    expected = {name: weights(last) for name, last in undisturbed.ended.items()}
    foreign = [Row(np.full(24, 384, dtype=np.int32), np.ones(24, dtype=np.float32))]
    bad = [
        job(tmp_path, "ftjob-malformed", foreign),
        job(tmp_path, "ftjob-nan", same_rows(50), learning_rate=1e30),
        job(tmp_path, "ftjob-oversized", same_rows(51, length=500)),
    ]
    disturbed = Loop(engine)
    disturbed.run([bad[0], *good[:3], bad[1], *good[3:5], bad[2], *good[5:]])
    codes = {name: last.failure.code for name, last in disturbed.ended.items() if isinstance(last, JobFailed)}
    assert codes == {
        "ftjob-malformed": "internal_error",
        "ftjob-nan": "loss_diverged",
        "ftjob-oversized": "out_of_memory",
    }
    for name, before in expected.items():
        after = weights(disturbed.ended[name])
        for key, weight in before.items():
            assert torch.equal(after[key], weight)


def weights(last: Trained | JobFailed) -> dict[str, torch.Tensor]:
    assert isinstance(last, Trained)
    return load_file(Path(last.directory) / "adapter_model.safetensors")
