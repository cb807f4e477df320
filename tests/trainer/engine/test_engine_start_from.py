"""Jobs that begin with another job's adapter: its weights, a fresh optimizer, and the same bytes after any break."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.engine.jobs import metrics, run, start, trained, weights
from trainer.engine.engine import Engine
from trainer.engine.failures import as_failure
from trainer.engine.runner import JobRunner
from trainer.export import AdapterInvalid, read_adapter
from trainer.protocol import CheckpointWritten, Start

FILE = "adapter_model.safetensors"


@pytest.fixture
def before(engine: Engine, tmp_path: Path) -> Path:
    """The folder of an adapter that was trained before."""
    return Path(trained(run(engine, start(tmp_path / "before"))).directory)


def from_it(root: Path, before: Path, checkpoint: str | None = None, **settings: Any) -> Start:
    command = start(root, "ftjob-2", checkpoint=checkpoint, **settings)
    return command.model_copy(update={"adapter_dir": str(before)})


def test_it_begins_with_the_weights_and_without_moments(engine: Engine, tmp_path: Path, before: Path) -> None:
    runner = JobRunner(engine, from_it(tmp_path, before), checkpoint_seconds=1e9)
    begun, moments = engine.save(runner.adapter)
    kept = read_adapter(before)
    assert begun.keys() == kept.keys()
    assert all(torch.equal(begun[name], kept[name].float()) for name in kept)
    assert any(tensor.count_nonzero() for name, tensor in begun.items() if name.endswith(".B"))
    assert not any(tensor.count_nonzero() for tensor in moments.values())
    assert (runner.step, runner.trained_tokens) == (0, 0)
    runner.release()


def test_the_first_loss_is_that_of_the_adapter_it_begins_with(engine: Engine, tmp_path: Path) -> None:
    """Over the same rows, going on begins below where starting over begins."""
    first = run(engine, start(tmp_path, n_epochs=10))
    again = start(tmp_path).model_copy(
        update={"adapter_dir": trained(first).directory, "work_dir": str(tmp_path / "again")}
    )
    second = run(engine, again)
    assert metrics(second)[0]["train_loss"] < 0.8 * metrics(first)[0]["train_loss"]


@pytest.mark.parametrize("turns", [1, 5])
def test_a_break_leaves_no_trace(engine: Engine, tmp_path: Path, before: Path, turns: int) -> None:
    whole = run(engine, from_it(tmp_path / "whole", before))
    written = run(engine, from_it(tmp_path / "broken", before), turns)[-2]
    assert isinstance(written, CheckpointWritten)
    resumed = run(engine, from_it(tmp_path / "resumed", before, checkpoint=written.directory))
    assert weights(resumed) == weights(whole)
    assert weights(whole) != weights(run(engine, start(tmp_path / "without", "ftjob-2")))


def test_an_unusable_checkpoint_begins_with_the_adapter_again(engine: Engine, tmp_path: Path, before: Path) -> None:
    whole = run(engine, from_it(tmp_path / "whole", before))
    written = run(engine, from_it(tmp_path / "broken", before), 3)[-2]
    assert isinstance(written, CheckpointWritten)
    (Path(written.directory) / "optimizer.safetensors").write_bytes(b"")
    again = run(engine, from_it(tmp_path / "again", before, checkpoint=written.directory))
    assert weights(again) == weights(whole)


@pytest.mark.parametrize("damage", ["cut", "other names", "other modules", "nan"])
def test_what_is_no_such_adapter_fails_the_job_and_frees_its_slot(
    engine: Engine, tmp_path: Path, before: Path, damage: str
) -> None:
    tensors = load_file(before / FILE)
    name = next(iter(tensors))
    if damage == "cut":
        (before / FILE).write_bytes((before / FILE).read_bytes()[:-5])
    elif damage == "other names":
        save_file({"lm_head.weight": tensors[name]}, before / FILE)
    elif damage == "other modules":
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, before / FILE)
    else:
        save_file({**tensors, name: torch.full_like(tensors[name], torch.nan)}, before / FILE)
    with pytest.raises(AdapterInvalid) as refused:
        JobRunner(engine, from_it(tmp_path, before), checkpoint_seconds=1e9)
    failure = as_failure(refused.value)
    assert (failure.code, failure.param) == ("start_model_corrupt", "model")
    run(engine, start(tmp_path, "ftjob-3"))


def test_another_rank_is_another_adapter(engine: Engine, tmp_path: Path, before: Path) -> None:
    with pytest.raises(AdapterInvalid):
        JobRunner(engine, from_it(tmp_path, before, lora_rank=4), checkpoint_seconds=1e9)
