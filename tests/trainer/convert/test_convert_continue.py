"""Training that goes on from an adapter, ours or brought along, begins where that one was, and gets better."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.trainer.convert.foreign import imported, lora, made
from tests.trainer.engine.conftest import evaluate, rows
from tests.trainer.engine.jobs import metrics, run, start, trained
from tests.trainer.tiny import write_base
from trainer.engine.adapter import AdapterSettings
from trainer.engine.base import load_engine
from trainer.engine.engine import Engine
from trainer.engine.plan import Row
from trainer.export import read_adapter


@pytest.fixture(scope="module")
def half_base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In bfloat16, as most bases are, so that adapters are stored in that."""
    return write_base(tmp_path_factory.mktemp("half") / "model", torch.bfloat16)


def loss_of(engine: Engine, folder: Path, settings: AdapterSettings, batch: list[Row]) -> float:
    adapter = engine.create_adapter(settings)
    engine.begin_with(adapter, read_adapter(folder))
    measured = evaluate(engine, adapter, batch)
    engine.release(adapter)
    return measured.loss / sum(row.labelled for row in batch)


def loss_of_peft(base: Path, folder: Path, batch: list[Row]) -> float:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder).eval()
    total = 0.0
    for row in batch:
        ids, weights = torch.tensor(row.input_ids).long(), torch.tensor(row.weights)
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0]
        total += float((torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none") * weights[1:]).sum())
    return total / sum(row.labelled for row in batch)


def test_an_adapter_brought_along_goes_on_where_it_was(half_base_dir: Path, tmp_path: Path) -> None:
    made(tmp_path / "theirs", half_base_dir, lora(use_rslora=True, rank_pattern={"q_proj": 8}))
    told = imported(tmp_path / "theirs", half_base_dir, tmp_path / "ours")
    engine = load_engine(str(half_base_dir), "cpu", threads=1)
    settings = AdapterSettings(rank=told.rank, alpha=told.alpha, targets=told.target_modules, seed=0)
    batch = rows(9, 6)
    there = loss_of_peft(half_base_dir, tmp_path / "theirs", batch)
    assert loss_of(engine, tmp_path / "ours", settings, batch) == pytest.approx(there, abs=1e-4)
    command = start(
        tmp_path, n_epochs=10, lora_rank=told.rank, lora_alpha=told.alpha, target_modules=told.target_modules
    )
    log = metrics(run(engine, command.model_copy(update={"adapter_dir": str(tmp_path / "ours")})))
    assert log[-1]["train_loss"] < 0.7 * log[0]["train_loss"]


@pytest.mark.parametrize(("base", "rounding"), [("tiny_base_dir", 1e-6), ("half_base_dir", 5e-5)])
def test_an_adapter_of_ours_goes_on_from_its_validation_loss(
    request: pytest.FixtureRequest, tmp_path: Path, base: str, rounding: float
) -> None:
    """Between the two lies the rounding of the stored weights to the base's own type, and nothing else."""
    engine = load_engine(str(request.getfixturevalue(base)), "cpu", threads=1)
    first = run(engine, start(tmp_path, validation=8, n_epochs=2, early_stopping=None))
    end = min(told["full_valid_loss"] for told in metrics(first) if told.get("full_valid_loss") is not None)
    settings = AdapterSettings(rank=8, alpha=16.0, targets="all-linear", seed=0)
    batch = rows(1000, 8)
    assert loss_of(engine, Path(trained(first).directory), settings, batch) == pytest.approx(end, rel=rounding)
