"""One job on the engine: what it tells, when it saves, and that it goes on exactly where it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from service.contracts.servable import Unservable
from tests.trainer.engine.jobs import (
    OVERFITTING,
    Clock,
    events,
    metrics,
    prepared,
    run,
    start,
    timeless,
    trained,
    turn,
    weights,
)
from trainer.checkpoint import spec_hash
from trainer.engine.adapter import NonFinite
from trainer.engine.engine import Engine
from trainer.engine.runner import JobRunner
from trainer.engine.telling import EVENTS_A_LINE
from trainer.protocol import CheckpointWritten, JobFailed, Progress, Stopped, Trained

TOTAL = 12


def test_every_step_is_told_once_and_tokens_are_counted(engine: Engine, tmp_path: Path) -> None:
    command = start(tmp_path)
    rows = prepared(tmp_path / "again", seed=sum(b"ftjob-1"), count=7)
    said = run(engine, command)
    told = events(said)
    assert [event.id for event in told] == [f"ftevent-1-m{step}" for step in range(1, TOTAL + 1)]
    assert told[2].message.startswith(f"Step 3/{TOTAL}: training loss=")
    assert set(told[2].data) == {
        "step",
        "total_steps",
        "train_loss",
        "train_mean_token_accuracy",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "queue_wait_seconds",
        "step_share",
    }
    assert told[-1].data["train_loss"] < told[0].data["train_loss"]
    end = trained(said)
    assert end.trained_tokens == 3 * sum(row.trained_tokens for row in rows)
    assert (end.step, end.adapter_step) == (TOTAL, None)
    assert end.target_modules == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


@pytest.mark.parametrize(
    "job",
    [
        {},
        {"validation": 40},
        OVERFITTING,
        {"packing": True, "count": 12},
        {"method": "dpo", "validation": 20},
    ],
    ids=["plain", "validated", "stopped early", "packed", "preference"],
)
def test_stopped_after_any_turn_and_resumed_it_ends_in_the_same_bytes(
    engine: Engine, tmp_path: Path, job: dict[str, Any]
) -> None:
    whole = run(engine, start(tmp_path / "whole", **job))
    turns = len(metrics(whole)) + sum("full_valid_loss" in told for told in metrics(whole))
    for stop_after in range(1, turns, 3):
        root = tmp_path / str(stop_after)
        first = run(engine, start(root, **job), stop_after)
        written = first[-2]
        assert isinstance(written, CheckpointWritten)
        assert isinstance(first[-1], Stopped)
        second = run(engine, start(root, **job, checkpoint=written.directory))
        assert weights(second) == weights(whole)
        assert timeless([*first, *second]) == timeless(whole)
        assert second[-1].model_dump(exclude={"directory"}) == whole[-1].model_dump(exclude={"directory"})


def test_a_batch_of_several_passes_shares_them_out_over_turns_and_is_cut_short_without_a_trace(
    engine: Engine, tmp_path: Path
) -> None:
    whole = run(engine, start(tmp_path / "whole"))
    engine.token_budget = 8  # a row a pass
    pieces = run(engine, start(tmp_path / "pieces"))
    for name, weight in load(weights(whole)).items():
        torch.testing.assert_close(load(weights(pieces))[name], weight, rtol=0, atol=2e-5)
    first = run(engine, start(tmp_path / "cut"), 5)
    written = first[-2]
    assert isinstance(written, CheckpointWritten)
    assert written.step == 2
    again = run(engine, start(tmp_path / "cut", checkpoint=written.directory))
    assert weights(again) == weights(pieces)


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
        patch.setattr("trainer.engine.saving.write_checkpoint", full)
        for _ in range(TOTAL - 1):
            clock.now += 2
            turn(engine, runner)
    turn(engine, runner)
    assert weights(runner.outbox) == weights(whole)
    warnings = [event for event in events(runner.outbox) if event.level == "warn"]
    assert len(warnings) == TOTAL - 1
    assert not [line for line in runner.outbox if isinstance(line, CheckpointWritten)]


@pytest.mark.parametrize("damage", ["cut", "foreign", "other rank", "outdated"])
def test_an_unusable_checkpoint_starts_over_and_says_so(engine: Engine, tmp_path: Path, damage: str) -> None:
    whole = run(engine, start(tmp_path / "whole"))
    changes = {"foreign": {"learning_rate": 0.5}, "other rank": {"lora_rank": 4}}.get(damage, {})
    written = run(engine, start(tmp_path / "other", **changes), 5)[-2]
    assert isinstance(written, CheckpointWritten)
    state = Path(written.directory) / "state.json"
    if damage == "cut":
        (state.parent / "optimizer.safetensors").write_bytes(b"")
    elif damage == "outdated":
        state.write_text(json.dumps(json.loads(state.read_text()) | {"format_version": 1}))
    elif damage == "other rank":  # A hash that agrees by mistake must not let wrong shapes in.
        right = spec_hash(start(tmp_path).spec, 7)
        state.write_text(json.dumps(json.loads(state.read_text()) | {"spec_sha256": right}))
    said = run(engine, start(tmp_path, checkpoint=written.directory))
    assert weights(said) == weights(whole)
    first = events(said)[0]
    assert (first.id, first.level) == ("ftevent-1-restart", "warn")


def test_the_first_step_is_told_at_once_then_lines_stay_short_and_silence_is_broken(
    engine: Engine, tmp_path: Path
) -> None:
    clock = Clock()
    long = start(tmp_path, count=2 * EVENTS_A_LINE + 20, n_epochs=1)
    runner = JobRunner(engine, long, checkpoint_seconds=1e9, clock=clock)
    for _ in range(1 + EVENTS_A_LINE + 5):
        turn(engine, runner)
    runner.flush()
    sizes = [len(line.events) for line in runner.outbox if isinstance(line, Progress)]
    assert sizes == [1, EVENTS_A_LINE, 5]
    runner.flush()
    assert len(runner.outbox) == 3
    clock.now += 11
    runner.flush()
    runner.flush()
    assert len(runner.outbox) == 4


def test_an_adapter_that_no_replica_would_serve_fails_the_job_with_the_reason(engine: Engine, tmp_path: Path) -> None:
    """Steps of hundreds each, which so small an alpha keeps from showing in the loss."""
    wild = {"learning_rate": 500, "lora_alpha": 1e-9, "lr_scheduler": "constant", "warmup_ratio": 0}
    runner = JobRunner(engine, start(tmp_path, **wild), checkpoint_seconds=1e9)

    def to_the_end() -> None:
        while not runner.finished:
            turn(engine, runner)

    with pytest.raises(Unservable) as caught:
        to_the_end()
    runner.failed(caught.value)
    failed = runner.outbox[-1]
    assert isinstance(failed, JobFailed)
    assert (failed.failure.code, failed.step) == ("adapter_unservable", TOTAL)
    assert "holds values that are not finite or exceed 1000" in failed.failure.message
    assert not list((tmp_path / "ftjob-1" / "work").glob("adapter*"))
    unlisted = [event.message for event in events(runner.outbox) if event.level == "warn"]
    assert [message.partition(" is not listed: ")[0] for message in unlisted][-1] == f"The model of step {TOTAL}"


def test_a_job_whose_adapter_could_never_be_served_is_not_begun(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(Unservable, match="lora_alpha"):
        JobRunner(engine, start(tmp_path, lora_rank=8, lora_alpha=1024), checkpoint_seconds=1e9)


@pytest.mark.parametrize(("method", "beta"), [("supervised", ""), ("dpo", " and a beta of 0.1")])
def test_divergence_is_told_with_the_numbers_that_caused_it(
    engine: Engine, tmp_path: Path, method: str, beta: str
) -> None:
    runner = JobRunner(engine, start(tmp_path, method=method, learning_rate=1e30), checkpoint_seconds=1e9)

    def to_the_end() -> None:
        while not runner.finished:
            turn(engine, runner)

    with pytest.raises(NonFinite) as caught:
        to_the_end()
    runner.failed(caught.value)
    failed = runner.outbox[-1]
    assert isinstance(failed, JobFailed)
    assert failed.failure.code == "loss_diverged"
    assert failed.failure.message.startswith(
        f"The loss or its gradient stopped being a finite number at step {failed.step + 1} of {runner.total_steps}, "
        f"with a learning rate of {runner.adam().learning_rate:.3g}{beta}. "
    )
