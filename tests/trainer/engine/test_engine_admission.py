"""Jobs that memory does not hold at once: they wait, are passed a bounded number of times, and lose nothing."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.engine.jobs import start, write_rows
from tests.trainer.engine.serving import serve
from tests.trainer.engine.test_engine_process import EngineProcess, weights
from trainer.engine.adapter import Adapter, AdapterSettings, OutOfMemory
from trainer.engine.admission import MOST_PASSED, Applicant, WaitingRoom, shape_of
from trainer.engine.base import load
from trainer.engine.engine import Engine
from trainer.engine.lowrank import Layout
from trainer.engine.memory import Account, Need
from trainer.engine.objectives import Sums
from trainer.engine.plan import MicroBatch, Row
from trainer.protocol import AwaitingMemory, CheckpointWritten, JobFailed, Progress, Start, Stop, Stopped, Trained

BUDGET = 512
RANK = 64


def applicant(root: Path, job_id: str, size: int) -> Applicant:
    return Applicant(start(root, job_id), Need(rank=8, slot=size, copies=0, transient=0))


def large_rows(seed: int, length: int = 200) -> list[Row]:
    random = np.random.default_rng(seed)
    ones = np.ones(length, dtype=np.float32)
    return [Row(random.integers(4, 384, length).astype(np.int32), ones) for _ in range(6)]


def large(root: Path, job_id: str, length: int = 200, method: str = "supervised") -> Start:
    command = start(root, job_id, count=6, lora_rank=RANK, method=method)
    write_rows(Path(command.training_dir), large_rows(len(job_id), length))
    return command


def test_the_first_goes_first_and_a_smaller_one_may_pass(tmp_path: Path) -> None:
    room = WaitingRoom()
    jobs = [applicant(tmp_path, f"ftjob-{size}", size) for size in (9, 5, 3)]
    for job in jobs:
        room.join(job)
    assert room.next(lambda one: one.need.slot <= 4) is jobs[2]
    assert room.next(lambda one: one.need.slot <= 4) is None
    assert room.next(lambda one: one.need.slot <= 9) is jobs[0]
    assert "ftjob-5" in room
    assert room.leave("ftjob-5") is jobs[1]
    assert room.leave("ftjob-5") is None


def test_nobody_is_passed_without_end(tmp_path: Path) -> None:
    room, big = WaitingRoom(), applicant(tmp_path, "ftjob-big", 9)
    room.join(big)
    for number in range(MOST_PASSED):
        small = applicant(tmp_path, f"ftjob-{number}", 1)
        room.join(small)
        assert room.next(lambda one: one.need.slot <= 4) is small
    late = applicant(tmp_path, "ftjob-late", 1)
    room.join(late)
    assert room.next(lambda one: one.need.slot <= 4) is None
    assert room.next(lambda one: one.need.slot <= 9) is big
    assert room.next(lambda one: one.need.slot <= 4) is late


@pytest.fixture
def limit(tiny_base_dir: Path, tmp_path: Path) -> int:
    """Bytes that hold either of two large jobs, but not both."""
    engine, books = load(str(tiny_base_dir), "cpu", threads=1, token_budget=BUDGET, memory_bytes=1 << 40)
    need = books.need(shape_of(large(tmp_path / "sized", "ftjob-sized"), engine.modules))
    books.enter("first", need)
    return (1 << 40) - books.free + books.needed(need) - 1


@pytest.fixture
def tight_process(tiny_base_dir: Path, limit: int) -> Iterator[EngineProcess]:
    child = EngineProcess(tiny_base_dir, "--token-budget", str(BUDGET), "--memory-bytes", str(limit))
    yield child
    assert child.end() == 0


def test_two_jobs_that_do_not_fit_together_run_one_after_the_other(
    tight_process: EngineProcess, tmp_path: Path, limit: int
) -> None:
    first, second = large(tmp_path, "ftjob-1"), large(tmp_path, "ftjob-22")
    expected = {
        job.spec.job_id: weights(tight_process.finish(job)[job.spec.job_id])
        for job in (large(tmp_path / "alone", "ftjob-1"), large(tmp_path / "alone", "ftjob-22"))
    }
    tight_process.send(first, second)
    said = [tight_process.next()]
    while sum(isinstance(line, Trained) for line in said) < 2:
        said.append(tight_process.next())
    (waits,) = [line for line in said if isinstance(line, AwaitingMemory)]
    assert waits.job_id == "ftjob-22"
    assert 0 <= waits.free_bytes < waits.needed_bytes <= limit
    ends = [line for line in said if isinstance(line, Trained)]
    assert [line.job_id for line in ends] == ["ftjob-1", "ftjob-22"]
    between = [line.job_id for line in said[: said.index(ends[0])] if isinstance(line, Progress)]
    assert "ftjob-22" not in between
    assert {line.job_id: weights(line) for line in ends} == expected


def test_a_job_that_waits_can_be_stopped_and_says_where_it_is(tight_process: EngineProcess, tmp_path: Path) -> None:
    waiting = large(tmp_path, "ftjob-22")
    tight_process.send(waiting)
    tight_process.until(Progress, "ftjob-22")
    tight_process.send(Stop(job_id="ftjob-22", save=True))
    written, stopped = tight_process.until(Stopped, "ftjob-22")[-2:]
    assert isinstance(written, CheckpointWritten)
    assert isinstance(stopped, Stopped)
    assert stopped.step > 0
    tight_process.send(start(tmp_path, "ftjob-1", n_epochs=50, lora_rank=RANK, count=40))
    for checkpoint, step in ((written.directory, stopped.step), (None, 0)):
        again = waiting.model_copy(update={"checkpoint_dir": checkpoint})
        tight_process.send(again, again, Stop(job_id="ftjob-22", save=True))
        said = tight_process.until(Stopped, "ftjob-22")
        assert [type(line) for line in said] == [AwaitingMemory, Stopped]
        assert isinstance(said[-1], Stopped)
        assert said[-1].step == step
        assert (said[-1].trained_tokens > 0) == (step > 0)
    tight_process.send(Stop(job_id="ftjob-1", save=False))
    tight_process.until(Stopped)


def test_a_job_too_large_by_itself_fails_at_once_and_says_what_to_lower(
    tight_process: EngineProcess, tmp_path: Path
) -> None:
    command = large(tmp_path, "ftjob-1", length=500, method="dpo")
    failed = tight_process.finish(command)["ftjob-1"]
    assert isinstance(failed, JobFailed)
    assert failed.failure.code == "out_of_memory"
    assert failed.failure.message.count("GiB") == 2
    for setting in ("lora_rank", "max_seq_length", "target_modules"):
        assert setting in failed.failure.message


class Crowded:
    """A device with room for long rows only while one adapter is resident."""

    def __init__(self, engine: Engine, calm_passes: int, limit: int) -> None:
        self._engine, self._train = engine, engine._passes._stepper.train
        self._calm_passes, self._limit = calm_passes, limit

    def train(self, batch: MicroBatch, layout: Layout) -> Sums:
        self._calm_passes -= 1
        residents = sum(sum(bank._taken) for bank in self._engine._banks.values())
        if residents > 1 and self._calm_passes < 0 and batch.input_ids.numel() > self._limit:
            raise torch.OutOfMemoryError("no more")
        return self._train(batch, layout)


@pytest.mark.parametrize("calm_passes", [0, 9])
def test_a_row_that_does_not_fit_beside_others_waits_until_they_have_gone(
    tiny_base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calm_passes: int
) -> None:
    """Whatever the account says: it costs nobody a job, and no step that was done."""
    engine, books = load(str(tiny_base_dir), "cpu", threads=1)
    jobs = [start(tmp_path, "ftjob-1"), large(tmp_path, "ftjob-2", length=300), start(tmp_path, "ftjob-3")]
    expected = {line.job_id: weights(line) for job in jobs for line in serve(engine, books, job).of(Trained)}
    engine, books = load(str(tiny_base_dir), "cpu", threads=1)
    monkeypatch.setattr(engine._passes._stepper, "train", Crowded(engine, calm_passes, limit=300).train)
    agent = serve(engine, books, *jobs)
    found = {line.job_id: weights(line) for line in agent.of(Trained)}
    assert found.keys() == expected.keys()
    assert found["ftjob-2"] == expected["ftjob-2"]
    assert [line.job_id for line in agent.of(AwaitingMemory)] == ["ftjob-2"]
    assert agent.of(Trained)[-1].job_id == "ftjob-2"
    assert len(agent.of(CheckpointWritten, "ftjob-2")) == (1 if calm_passes else 0)
    assert not agent.of(Stopped)


def test_an_adapter_that_cannot_be_allocated_waits_until_the_others_have_gone(
    tiny_base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, books = load(str(tiny_base_dir), "cpu", threads=1)
    create = engine.create_adapter

    def one_alone(settings: AdapterSettings) -> Adapter:
        if any(any(bank._taken) for bank in engine._banks.values()):
            raise OutOfMemory
        return create(settings)

    monkeypatch.setattr(engine, "create_adapter", one_alone)
    agent = serve(engine, books, *(start(tmp_path, f"ftjob-{number}") for number in range(3)))
    assert sorted(line.job_id for line in agent.of(Trained)) == ["ftjob-0", "ftjob-1", "ftjob-2"]
    assert len(agent.of(AwaitingMemory)) >= 2


def test_memory_that_lacks_for_a_job_alone_fails_it(
    tiny_base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, books = load(str(tiny_base_dir), "cpu", threads=1)

    def never(_: AdapterSettings) -> Adapter:
        raise OutOfMemory

    monkeypatch.setattr(engine, "create_adapter", never)
    (failed,) = serve(engine, books, start(tmp_path)).of(JobFailed)
    assert failed.failure.code == "out_of_memory"
    assert books.free == books.limit


def test_an_account_is_even_again_when_all_have_left(tiny_base_dir: Path, tmp_path: Path) -> None:
    engine, books = load(str(tiny_base_dir), "cpu", threads=1)
    sick = start(tmp_path, "ftjob-9", learning_rate=1e30)
    serve(engine, books, start(tmp_path, "ftjob-1"), sick, Stop(job_id="ftjob-1", save=False))
    assert isinstance(books, Account)
    assert books.free == books.limit
