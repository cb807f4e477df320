"""The engine process over real pipes: jobs beside each other, stopped, killed, resumed, and failing alone."""

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftConfig
from safetensors.torch import load, load_file

from tests.trainer.engine.jobs import OVERFITTING, start, write_rows
from trainer.engine.plan import Row
from trainer.protocol import (
    CheckpointWritten,
    EngineReady,
    FromEngine,
    JobFailed,
    Line,
    Progress,
    Start,
    Stop,
    Stopped,
    Trained,
    from_engine,
)

SECONDS = 60.0
FINAL_TOLERANCE = 1e-5
"""Between a job alone and beside others, whose passes have other shapes."""


class EngineProcess:
    def __init__(self, base: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer.engine", "--base", str(base), "--fingerprint", "f", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._lines: queue.Queue[FromEngine] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.ready = self.next()
        assert isinstance(self.ready, EngineReady)

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(from_engine.validate_json(line))

    def next(self) -> FromEngine:
        return self._lines.get(timeout=SECONDS)

    def send(self, *lines: Line) -> None:
        assert self.process.stdin
        self.process.stdin.write(b"".join(line.model_dump_json().encode() + b"\n" for line in lines))
        self.process.stdin.flush()

    def until(self, kind: type[Line], job_id: str = "ftjob-1") -> list[FromEngine]:
        """Everything said about a job up to its first message of that kind."""
        said: list[FromEngine] = []
        while not (said and isinstance(said[-1], kind)):
            line = self.next()
            if getattr(line, "job_id", None) == job_id:
                said.append(line)
        return said

    def finish(self, *starts: Start) -> dict[str, FromEngine]:
        """The last message of each of these jobs."""
        self.send(*starts)
        last: dict[str, FromEngine] = {}
        while len(last) < len(starts):
            line = self.next()
            if isinstance(line, Trained | JobFailed):
                last[line.job_id] = line
        return last

    def end(self) -> int:
        assert self.process.stdin
        self.process.stdin.close()
        return self.process.wait(SECONDS)


@pytest.fixture(scope="module")
def engine_process(tiny_base_dir: Path) -> Iterator[EngineProcess]:
    child = EngineProcess(tiny_base_dir)
    yield child
    assert child.end() == 0


def weights(line: FromEngine) -> bytes:
    assert isinstance(line, Trained)
    return (Path(line.directory) / "adapter_model.safetensors").read_bytes()


def test_from_start_to_trained(engine_process: EngineProcess, tmp_path: Path) -> None:
    assert isinstance(engine_process.ready, EngineReady)
    assert engine_process.ready.base_fingerprint == "f"
    engine_process.send(start(tmp_path))
    said = engine_process.until(Trained)
    steps = [event.data["step"] for line in said if isinstance(line, Progress) for event in line.events]
    assert steps == list(range(1, 13))
    trained = said[-1]
    assert isinstance(trained, Trained)
    assert PeftConfig.from_pretrained(trained.directory).peft_type == "LORA"
    assert len(load_file(Path(trained.directory) / "adapter_model.safetensors")) == 28


def test_jobs_beside_each_other_end_as_they_do_alone(engine_process: EngineProcess, tmp_path: Path) -> None:
    starts = [start(tmp_path, f"ftjob-{number}", count=5 + number, lora_rank=8 * number) for number in (1, 2, 4)]
    alone = [engine_process.finish(command)[command.spec.job_id] for command in starts]
    expected = [load(weights(line)) for line in alone]
    together = engine_process.finish(*starts)
    for command, before in zip(starts, expected, strict=True):
        after = load(weights(together[command.spec.job_id]))
        for name, weight in before.items():
            torch.testing.assert_close(after[name], weight, rtol=0, atol=FINAL_TOLERANCE)


def test_stopped_with_a_checkpoint_and_started_from_it_ends_in_the_same_adapter(
    engine_process: EngineProcess, tmp_path: Path
) -> None:
    whole = engine_process.finish(start(tmp_path / "whole", n_epochs=30))["ftjob-1"]
    engine_process.send(start(tmp_path, n_epochs=30))
    engine_process.until(Progress)
    engine_process.send(Stop(job_id="ftjob-1", save=True))
    said = engine_process.until(Stopped)
    written, stopped = said[-2:]
    assert isinstance(written, CheckpointWritten)
    assert isinstance(stopped, Stopped)
    assert 0 < written.step == stopped.step < 120
    again = start(tmp_path, n_epochs=30, checkpoint=written.directory)
    assert weights(engine_process.finish(again)["ftjob-1"]) == weights(whole)


def test_stopped_without_saving_leaves_no_checkpoint(engine_process: EngineProcess, tmp_path: Path) -> None:
    engine_process.send(start(tmp_path, n_epochs=50), Stop(job_id="ftjob-1", save=False))
    assert isinstance(engine_process.until(Stopped)[-1], Stopped)
    assert not (tmp_path / "ftjob-1" / "work" / "checkpoints").exists()


def test_killed_at_any_moment_a_job_goes_on_from_its_last_checkpoint(
    engine_process: EngineProcess, tiny_base_dir: Path, tmp_path: Path
) -> None:
    whole = weights(engine_process.finish(start(tmp_path / "whole", n_epochs=30))["ftjob-1"])
    child = EngineProcess(tiny_base_dir, "--checkpoint-seconds", "0.05")
    child.send(start(tmp_path, n_epochs=30))
    written = child.until(CheckpointWritten)[-1]
    child.process.send_signal(signal.SIGKILL)
    child.process.wait(SECONDS)
    assert isinstance(written, CheckpointWritten)
    again = engine_process.finish(start(tmp_path, n_epochs=30, checkpoint=written.directory))["ftjob-1"]
    assert weights(again) == whole


def test_a_diverging_job_fails_alone(engine_process: EngineProcess, tmp_path: Path) -> None:
    healthy = start(tmp_path, "ftjob-2")
    expected = weights(engine_process.finish(healthy)["ftjob-2"])
    sick = start(tmp_path, "ftjob-3", learning_rate=1e30, lora_rank=8)
    last = engine_process.finish(sick, healthy)
    failed = last["ftjob-3"]
    assert isinstance(failed, JobFailed)
    assert failed.failure.code == "loss_diverged"
    assert "at step " in failed.failure.message
    assert "e+" in failed.failure.message
    assert weights(last["ftjob-2"]) == expected
    reused = start(tmp_path / "after", "ftjob-2")
    assert weights(engine_process.finish(reused)["ftjob-2"]) == expected


def test_jobs_that_cannot_start_say_why_and_others_go_on(engine_process: EngineProcess, tmp_path: Path) -> None:
    absent = start(tmp_path, "ftjob-a").model_copy(update={"training_dir": str(tmp_path / "absent")})
    foreign, too_long = start(tmp_path, "ftjob-e"), start(tmp_path, "ftjob-f")
    write_rows(Path(foreign.training_dir), [Row(np.full(9, 384, dtype=np.int32), np.ones(9, dtype=np.float32))])
    write_rows(Path(too_long.training_dir), [Row(np.full(513, 5, dtype=np.int32), np.ones(513, dtype=np.float32))])
    last = engine_process.finish(
        absent,
        start(tmp_path, "ftjob-b", fingerprint="other"),
        start(tmp_path, "ftjob-c", target_modules=("nothing",)),
        start(tmp_path, "ftjob-d"),
        foreign,
        too_long,
    )
    told = {job: line.failure for job, line in last.items() if isinstance(line, JobFailed)}
    assert {job: failure.code for job, failure in told.items()} == {
        "ftjob-a": "internal_error",
        "ftjob-b": "internal_error",
        "ftjob-c": "invalid_target_modules",
        "ftjob-e": "internal_error",
        "ftjob-f": "internal_error",
    }
    assert "FileNotFoundError" in told["ftjob-a"].message
    assert "WrongBase" in told["ftjob-b"].message
    assert "TokensOutOfRange" in told["ftjob-e"].message
    assert "TokensOutOfRange" in told["ftjob-f"].message
    assert "nothing" in told["ftjob-c"].message
    assert isinstance(last["ftjob-d"], Trained)


def test_commands_that_make_no_sense_are_survived(engine_process: EngineProcess, tmp_path: Path) -> None:
    assert engine_process.process.stdin
    engine_process.process.stdin.write(b'{"type": "start"}\nnonsense\n\xff\n')
    twice = start(tmp_path)
    engine_process.send(Stop(job_id="ftjob-unknown", save=True), twice, twice)
    assert isinstance(engine_process.until(Trained)[-1], Trained)


def test_it_ends_with_the_pipe_even_while_training(tiny_base_dir: Path, tmp_path: Path) -> None:
    child = EngineProcess(tiny_base_dir)
    child.send(start(tmp_path, n_epochs=50, count=40))
    child.until(Progress)
    assert child.end() == 0


def test_a_preference_is_learnt_and_beside_it_a_packed_job(engine_process: EngineProcess, tmp_path: Path) -> None:
    preference = start(tmp_path, "ftjob-p", method="dpo", count=12, validation=12, n_epochs=8)
    judged_by_itself = preference.model_copy(update={"validation_dir": preference.training_dir})
    packed = start(tmp_path, "ftjob-q", packing=True, count=20, n_epochs=8)
    engine_process.send(judged_by_itself, packed)
    told: dict[str, list[dict[str, float]]] = {"ftjob-p": [], "ftjob-q": []}
    ends: dict[str, Trained] = {}
    while len(ends) < 2:
        line = engine_process.next()
        if isinstance(line, Progress):
            told[line.job_id] += [event.data for event in line.events if event.type == "metrics"]
        elif isinstance(line, Trained):
            ends[line.job_id] = line
    margins = [data["full_valid_reward_margin"] for data in told["ftjob-p"] if "full_valid_loss" in data]
    assert len(margins) == 8
    assert 0 < margins[0] < margins[-1]
    assert told["ftjob-p"][-1]["full_valid_reward_accuracy"] == 1.0
    assert ends["ftjob-p"].step == 48
    # Twenty examples of up to 60 tokens in rows of 128, two rows a step: 80 steps without packing.
    assert ends["ftjob-q"].step < 8 * 10 / 1.5
    assert told["ftjob-q"][-1]["train_loss"] < 0.8 * told["ftjob-q"][0]["train_loss"]


def test_killed_and_resumed_a_job_keeps_its_best_adapter_and_stops_early_where_it_would_have(
    engine_process: EngineProcess, tiny_base_dir: Path, tmp_path: Path
) -> None:
    whole = engine_process.finish(start(tmp_path / "whole", **OVERFITTING))["ftjob-1"]
    assert isinstance(whole, Trained)
    assert (whole.step, whole.adapter_step) == (16, 8)
    child = EngineProcess(tiny_base_dir, "--checkpoint-seconds", "0")
    child.send(start(tmp_path, **OVERFITTING))
    written = child.until(CheckpointWritten)[-1]
    while isinstance(written, CheckpointWritten) and written.step < 10:
        written = child.until(CheckpointWritten)[-1]
    child.process.send_signal(signal.SIGKILL)
    child.process.wait(SECONDS)
    assert isinstance(written, CheckpointWritten)
    again = engine_process.finish(start(tmp_path, **OVERFITTING, checkpoint=written.directory))["ftjob-1"]
    assert weights(again) == weights(whole)
    assert again.model_dump(exclude={"directory"}) == whole.model_dump(exclude={"directory"})
