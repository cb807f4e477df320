"""One job on the engine: what it tells, when it saves, and that it goes on exactly where it was."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from service.contracts.worker import Event
from tests.trainer.engine.conftest import evaluate
from tests.trainer.engine.jobs import prepared, start
from trainer.checkpoint import spec_hash
from trainer.engine.engine import Engine
from trainer.engine.rows import RowFile, epoch_order
from trainer.engine.runner import EVENTS_A_LINE, JobRunner
from trainer.engine.scheduler import Scheduler
from trainer.engine.turns import step
from trainer.protocol import CheckpointWritten, Line, Progress, Start, Stopped, Trained

TOTAL = 12


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def turn(engine: Engine, runner: JobRunner) -> None:
    """One step of one job alone; raises what ends it."""
    step(engine, Scheduler(engine.shared_budget), [runner], lambda _, work: work())


def run(engine: Engine, command: Start, turns: int = 10**6) -> list[Line]:
    """All that a job says until it is done, or for so many turns and then a stop that saves."""
    runner = JobRunner(engine, command, checkpoint_seconds=1e9)
    for _ in range(turns):
        turn(engine, runner)
        if runner.finished:
            break
    else:
        runner.stop(save=True)
    return runner.outbox


def events(said: Sequence[Line]) -> list[Event]:
    return [event for line in said if isinstance(line, Progress) for event in line.events]


def weights(said: Sequence[Line]) -> bytes:
    trained = said[-1]
    assert isinstance(trained, Trained)
    return (Path(trained.directory) / "adapter_model.safetensors").read_bytes()


def test_every_step_is_told_once_and_tokens_are_counted(engine: Engine, tmp_path: Path) -> None:
    command = start(tmp_path)
    rows = prepared(tmp_path / "again", seed=sum(b"ftjob-1"), count=7)
    said = run(engine, command)
    told = events(said)
    assert [event.id for event in told] == [f"ftevent-1-m{step}" for step in range(1, TOTAL + 1)]
    assert told[2].message.startswith(f"Step 3/{TOTAL}: training loss=")
    assert set(told[2].data) == {"step", "total_steps", "train_loss", "train_mean_token_accuracy"}
    assert told[-1].data["train_loss"] < told[0].data["train_loss"]
    trained = said[-1]
    assert isinstance(trained, Trained)
    assert trained.trained_tokens == 3 * sum(row.trained_tokens for row in rows)
    assert trained.target_modules == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


@pytest.mark.parametrize("validation", [0, 40])
def test_stopped_after_any_turn_and_resumed_it_ends_in_the_same_bytes(
    engine: Engine, tmp_path: Path, validation: int
) -> None:
    whole = run(engine, start(tmp_path / "whole", validation=validation))
    turns = TOTAL + (6 if validation else 0)
    for stop_after in range(1, turns, 3):
        root = tmp_path / str(stop_after)
        first = run(engine, start(root, validation=validation), stop_after)
        written = first[-2]
        assert isinstance(written, CheckpointWritten)
        assert isinstance(first[-1], Stopped)
        second = run(engine, start(root, validation=validation, checkpoint=written.directory))
        assert weights(second) == weights(whole)
        assert {event.id: event for event in events(first) + events(second)} == {
            event.id: event for event in events(whole)
        }
        assert second[-1].model_dump(exclude={"directory"}) == whole[-1].model_dump(exclude={"directory"})


def test_a_batch_of_several_passes_shares_them_out_over_turns_and_is_cut_short_without_a_trace(
    engine: Engine, tmp_path: Path
) -> None:
    whole = run(engine, start(tmp_path / "whole"))
    engine.token_budget = 8  # a row a pass
    pieces = run(engine, start(tmp_path / "pieces"))
    for name, weight in load(weights(whole)).items():
        torch.testing.assert_close(load(weights(pieces))[name], weight, rtol=0, atol=1e-5)
    first = run(engine, start(tmp_path / "cut"), 5)
    written = first[-2]
    assert isinstance(written, CheckpointWritten)
    assert written.step == 2
    again = run(engine, start(tmp_path / "cut", checkpoint=written.directory))
    assert weights(again) == weights(pieces)


def test_the_order_of_rows_is_a_permutation_that_epoch_and_seed_decide() -> None:
    first, second = epoch_order(5, 0, 100), epoch_order(5, 1, 100)
    assert sorted(first.tolist()) == list(range(100))
    assert np.array_equal(first, epoch_order(5, 0, 100))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, epoch_order(6, 0, 100))


def test_validation_is_told_at_the_end_of_each_epoch(engine: Engine, tmp_path: Path) -> None:
    command = start(tmp_path, validation=40)
    told = events(run(engine, command))
    ends = [event.data["step"] for event in told if "full_valid_loss" in event.data]
    assert ends == [4, 8, 12]
    assert len(told) == TOTAL
    last = told[-1].data
    assert last["valid_loss"] == last["full_valid_loss"]
    assert last["valid_mean_token_accuracy"] == last["full_valid_mean_token_accuracy"]
    runner = JobRunner(engine, start(tmp_path, validation=40), checkpoint_seconds=1e9)
    while not runner._unvalidated:
        turn(engine, runner)
    validation = RowFile(Path(command.validation_dir or ""))
    expected = evaluate(engine, runner.adapter, [validation[index] for index in range(40)])
    turn(engine, runner)
    turn(engine, runner)
    runner.flush()
    assert events(runner.outbox)[-1].data["full_valid_loss"] == pytest.approx(expected.mean_loss, rel=1e-6)


def test_checkpoints_come_by_time_and_sooner_at_an_epochs_end(engine: Engine, tmp_path: Path) -> None:
    clock = Clock()
    runner = JobRunner(engine, start(tmp_path), checkpoint_seconds=60, clock=clock)
    while not runner.finished:
        clock.now += 7
        turn(engine, runner)
    steps = [line.step for line in runner.outbox if isinstance(line, CheckpointWritten)]
    # 28 s after the start and 28 s after that an epoch ends, which is over a quarter of 60; none at the very end.
    assert steps == [4, 8]
    assert isinstance(runner.outbox[-1], Trained)
    late = JobRunner(engine, start(tmp_path), checkpoint_seconds=20, clock=clock)
    for _ in range(3):
        clock.now += 7
        turn(engine, late)
    assert [line.step for line in late.outbox if isinstance(line, CheckpointWritten)] == [3]


def test_a_full_disk_costs_the_checkpoint_and_not_the_job(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(engine, start(tmp_path / "whole"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    clock = Clock()
    runner = JobRunner(engine, start(tmp_path / "full"), checkpoint_seconds=1, clock=clock)
    with monkeypatch.context() as patch:
        patch.setattr("trainer.engine.runner.write_checkpoint", full)
        for _ in range(TOTAL - 1):
            clock.now += 2
            turn(engine, runner)
    turn(engine, runner)
    assert weights(runner.outbox) == weights(whole)
    warnings = [event for event in events(runner.outbox) if event.level == "warn"]
    assert len(warnings) == TOTAL - 1
    assert not [line for line in runner.outbox if isinstance(line, CheckpointWritten)]


@pytest.mark.parametrize("damage", ["cut", "foreign", "other rank"])
def test_an_unusable_checkpoint_starts_over_and_says_so(engine: Engine, tmp_path: Path, damage: str) -> None:
    whole = run(engine, start(tmp_path / "whole"))
    changes = {"cut": {}, "foreign": {"learning_rate": 0.5}, "other rank": {"lora_rank": 4}}[damage]
    written = run(engine, start(tmp_path / "other", **changes), 5)[-2]
    assert isinstance(written, CheckpointWritten)
    state = Path(written.directory) / "state.json"
    if damage == "cut":
        (state.parent / "optimizer.safetensors").write_bytes(b"")
    elif damage == "other rank":  # A hash that agrees by mistake must not let wrong shapes in.
        right = spec_hash(start(tmp_path).spec, 7)
        state.write_text(json.dumps(json.loads(state.read_text()) | {"spec_sha256": right}))
    said = run(engine, start(tmp_path, checkpoint=written.directory))
    assert weights(said) == weights(whole)
    first = events(said)[0]
    assert (first.id, first.level) == ("ftevent-1-restart", "warn")


def test_progress_lines_stay_short_and_silence_is_broken(engine: Engine, tmp_path: Path) -> None:
    clock = Clock()
    runner = JobRunner(engine, start(tmp_path, n_epochs=50), checkpoint_seconds=1e9, clock=clock)
    for _ in range(EVENTS_A_LINE + 5):
        turn(engine, runner)
    runner.flush()
    sizes = [len(line.events) for line in runner.outbox if isinstance(line, Progress)]
    assert sizes == [EVENTS_A_LINE, 5]
    runner.flush()
    assert len(runner.outbox) == 2
    clock.now += 11
    runner.flush()
    runner.flush()
    assert len(runner.outbox) == 3
