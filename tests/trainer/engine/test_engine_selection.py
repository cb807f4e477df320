"""A job with a validation file: what its evaluations tell, which adapter it delivers, and when it stops early."""

from pathlib import Path

import pytest

from tests.trainer.engine.conftest import evaluate
from tests.trainer.engine.jobs import OVERFITTING, adapter_bytes, events, metrics, run, start, trained, turn, weights
from trainer.engine.adapter import Measured, Work
from trainer.engine.engine import Engine
from trainer.engine.rows import RowFile
from trainer.engine.runner import JobRunner
from trainer.protocol import CheckpointModelWritten, CheckpointWritten, Line, Start

ROWS = 40


def losses(said: list[Line]) -> dict[int, float]:
    """Of each evaluation, by step."""
    return {int(told["step"]): told["full_valid_loss"] for told in metrics(said) if "full_valid_loss" in told}


def test_an_evaluation_is_told_with_its_step_under_openais_names(engine: Engine, tmp_path: Path) -> None:
    told = metrics(run(engine, start(tmp_path, validation=ROWS)))
    assert [data["step"] for data in told if "full_valid_loss" in data] == [2, 4, 6, 8, 10, 12]
    assert len(told) == 12
    last = told[-1]
    assert last["valid_loss"] == last["full_valid_loss"]
    assert last["valid_mean_token_accuracy"] == last["full_valid_mean_token_accuracy"]
    assert 0 < told[1]["full_valid_mean_kl"] < last["full_valid_mean_kl"]


def test_its_numbers_are_those_of_the_whole_file_and_of_the_weights_after_the_step(
    engine: Engine, tmp_path: Path
) -> None:
    command = start(tmp_path, validation=ROWS)
    runner = JobRunner(engine, command, checkpoint_seconds=1e9)
    while not runner.validating:
        turn(engine, runner)
    file = RowFile(Path(command.validation_dir or ""))
    rows = [file[index] for index in range(ROWS)]
    (compared,) = engine.evaluate([Work(runner.adapter, rows, compared=True)])
    expected = evaluate(engine, runner.adapter, rows)
    turns = 0
    while runner.validating:
        turn(engine, runner)
        turns += 1
    assert turns > 1, "a long file must not keep others waiting"
    runner.flush()
    told = metrics(runner.outbox)[-1]
    assert told["full_valid_loss"] == pytest.approx(expected.mean_loss, rel=1e-6)
    assert told["full_valid_mean_token_accuracy"] == pytest.approx(expected.accuracy, rel=1e-6)
    assert isinstance(compared, Measured)
    assert told["full_valid_mean_kl"] == pytest.approx(compared.divergence / compared.weight, rel=1e-5)


def test_the_adapter_of_the_lowest_validation_loss_is_delivered(engine: Engine, tmp_path: Path) -> None:
    said = run(engine, start(tmp_path, **{**OVERFITTING, "n_epochs": 4, "early_stopping": None}))
    found = losses(said)
    best = min(found, key=lambda step: found[step])
    assert best == 8, "the job must overfit for this test to say anything"
    end = trained(said)
    assert (end.step, end.adapter_step) == (16, best)
    models = {line.step: line for line in said if isinstance(line, CheckpointModelWritten)}
    assert weights(said) == adapter_bytes(models[best].directory)
    assert weights(said) != adapter_bytes(models[16].directory)
    told = next(event for event in events(said) if event.id == "ftevent-1-best")
    assert told.message == f"The adapter of step {best}, with the lowest validation loss {found[best]:.4f}, is kept."
    assert (told.type, told.level) == ("message", "info")


def test_the_last_adapter_is_delivered_without_a_word_where_it_is_the_best(engine: Engine, tmp_path: Path) -> None:
    command = start(tmp_path, n_epochs=4, validation=4)
    same = command.model_copy(update={"validation_dir": command.training_dir})
    said = run(engine, same)
    assert min(losses(said).values()) == losses(said)[16]
    assert trained(said).adapter_step is None
    assert {event.type for event in events(said)} == {"metrics"}


@pytest.mark.parametrize("patience", [1, 2])
def test_training_stops_early_as_a_success(engine: Engine, tmp_path: Path, patience: int) -> None:
    early = {"patience": patience, "min_delta": 0.002}
    full = losses(run(engine, start(tmp_path / "full", **{**OVERFITTING, "early_stopping": None})))
    said = run(engine, start(tmp_path / "early", **{**OVERFITTING, "early_stopping": early}))
    end, found = trained(said), losses(said)
    assert (end.adapter_step, end.step, max(found)) == (8, 8 + 4 * patience, 8 + 4 * patience)
    assert found == {step: loss for step, loss in full.items() if step <= end.step}
    told = {event.id: event.message for event in events(said) if event.type == "message"}
    assert list(told) == ["ftevent-1-early-stop", "ftevent-1-best"]
    assert told["ftevent-1-early-stop"].startswith(f"Training stopped early at step {end.step}: ")


def test_without_a_validation_file_nothing_is_judged(engine: Engine, tmp_path: Path) -> None:
    plain = run(engine, start(tmp_path / "plain"))
    early = run(engine, start(tmp_path / "early", early_stopping={"patience": 1, "min_delta": 0.5}))
    assert weights(plain) == weights(early)
    assert (trained(early).step, trained(early).adapter_step) == (12, None)
    assert losses(early) == {}


def test_a_preference_is_told_by_its_rewards(engine: Engine, tmp_path: Path) -> None:
    said = run(engine, start(tmp_path, method="dpo", count=12, validation=20, learning_rate=0.03, n_epochs=4))
    first, *_, last = metrics(said)
    names = {f"{prefix}_reward_{kind}" for prefix in ("valid", "full_valid") for kind in ("accuracy", "margin")}
    assert names < set(last)
    assert first["train_reward_margin"] == pytest.approx(0, abs=1e-5)
    assert first["train_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert last["train_reward_margin"] > last["full_valid_reward_margin"] > 0.1
    assert last["train_reward_accuracy"] == 1.0
    assert last["full_valid_reward_accuracy"] > 0.5
    assert last["full_valid_mean_kl"] > 0


def model_metrics(said: list[Line]) -> dict[int, dict[str, float]]:
    return {line.step: line.metrics.model_dump() for line in said if isinstance(line, CheckpointModelWritten)}


@pytest.mark.parametrize("validation", [0, 8])
def test_each_epoch_leaves_a_checkpoint_model_with_its_metrics(engine: Engine, tmp_path: Path, validation: int) -> None:
    said = run(engine, start(tmp_path, validation=validation))
    told = {int(data["step"]): data for data in metrics(said)}
    found = model_metrics(said)
    assert list(found) == [4, 8, 12]
    for step, about in found.items():
        assert {name: told[step].get(name) for name in about} == about
        assert (about["full_valid_loss"] is not None) == bool(validation)
    last = next(line for line in said if isinstance(line, CheckpointModelWritten) and line.step == 12)
    assert said.index(last) < len(said) - 1
    if not validation:
        assert adapter_bytes(last.directory) == weights(said)


def resumed(engine: Engine, command: Start, stop_after: int) -> list[Line]:
    first = run(engine, command, stop_after)
    written = next(line for line in first if isinstance(line, CheckpointWritten))
    return run(engine, command.model_copy(update={"checkpoint_dir": written.directory}))


def test_a_replayed_checkpoint_model_has_the_same_bytes(engine: Engine, tmp_path: Path) -> None:
    whole = [line for line in run(engine, start(tmp_path / "whole")) if isinstance(line, CheckpointModelWritten)]
    again = [line for line in resumed(engine, start(tmp_path / "again"), 3) if isinstance(line, CheckpointModelWritten)]
    assert [line.step for line in again] == [line.step for line in whole] == [4, 8, 12]
    for one, other in zip(whole, again, strict=True):
        assert adapter_bytes(one.directory) == adapter_bytes(other.directory)
        assert one.metrics == other.metrics


def test_a_full_disk_costs_the_checkpoint_model_and_not_the_job(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(engine, start(tmp_path / "whole"))
    export = engine.export

    def full(adapter: object, directory: Path, *more: object) -> tuple[str, ...]:
        if directory.parent.name == "checkpoint-models":
            raise OSError(28, "No space left on device")
        return export(adapter, directory, *more)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(engine, "export", full)
    said = run(engine, start(tmp_path / "full"))
    assert weights(said) == weights(whole)
    assert not model_metrics(said)
    warnings = [event for event in events(said) if event.level == "warn"]
    assert [event.id for event in warnings] == ["ftevent-1-a4", "ftevent-1-a8", "ftevent-1-a12"]
    assert warnings[0].message == "The checkpoint model of step 4 could not be written."
