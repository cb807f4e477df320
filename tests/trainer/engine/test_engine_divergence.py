"""How far an adapter has moved from the base: KL from full distributions, in the pass that evaluates it."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.trainer.engine.conftest import labelled, only, rows, settings, train_together
from tests.trainer.engine.preference import pairs
from tests.trainer.engine.test_engine_packing import packs
from tests.trainer.engine.test_engine_parity import TOLERANCE, peft_model
from trainer.engine import objectives
from trainer.engine.adapter import Adapter, Preference, Supervised, Work
from trainer.engine.engine import Engine
from trainer.engine.optimizer import AdamParams
from trainer.engine.plan import Row


def trained(engine: Engine, seed: int = 1) -> Adapter:
    adapter = engine.create_adapter(settings(seed=seed))
    for step in range(5):
        train_together(engine, [(adapter, rows(100 * seed + step, 2), 1e-2)])
    return adapter


@torch.no_grad()
def divergence(model: PeftModel, batch: list[Row]) -> float:
    """KL(base ‖ adapter) by its definition, of one unpadded row at a time."""
    total = 0.0
    for row in batch:
        ids = torch.from_numpy(row.input_ids).long()[None]
        own = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        with model.disable_adapter():
            base = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        each = (base.exp() * (base - own)).sum(-1)
        total += float((each * torch.from_numpy(row.weights)[1:]).sum())
    return total


def test_the_divergence_of_supervised_rows_is_that_of_peft(engine: Engine, tiny_base_dir: Path, tmp_path: Path) -> None:
    adapter, batch = trained(engine), rows(7, 5)
    batch[0].weights[batch[0].weights > 0] = 0.5
    engine.export(adapter, tmp_path, "tiny")
    expected = divergence(peft_model(tiny_base_dir, tmp_path), batch)
    plain = only(engine.evaluate([Work(adapter, batch)]))
    measured = only(engine.evaluate([Work(adapter, batch, compared=True)]))
    assert measured.divergence == pytest.approx(expected, rel=1e-5)
    assert measured.divergence > 0.1 > plain.divergence == 0
    assert measured.loss == pytest.approx(plain.loss, rel=TOLERANCE)
    assert (measured.correct, measured.weight) == (plain.correct, labelled(batch))


def test_the_divergence_of_pairs_is_that_of_their_preferred_rows(
    engine: Engine, tiny_base_dir: Path, tmp_path: Path
) -> None:
    adapter, batch = trained(engine), pairs(8, 3)
    engine.export(adapter, tmp_path, "tiny")
    expected = divergence(peft_model(tiny_base_dir, tmp_path), batch[::2])
    measured = only(engine.evaluate([Work(adapter, batch, 3.0, Preference(0.1), compared=True)]))
    assert measured.divergence == pytest.approx(expected, rel=1e-5)
    assert measured.weight == labelled(batch[::2])


def test_packed_rows_are_compared_example_by_example(engine: Engine) -> None:
    adapter, batch = trained(engine), packs(3)
    examples = [example for row in batch for example in row.examples()]
    packed, apart = (only(engine.evaluate([Work(adapter, given, compared=True)])) for given in (batch, examples))
    assert packed.divergence == pytest.approx(apart.divergence, rel=TOLERANCE)


@pytest.mark.parametrize("objective", [Supervised(), Preference(0.1)])
def test_what_shares_the_pass_changes_nothing_but_rounding(
    engine: Engine, objective: Supervised | Preference, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = [trained(engine, seed) for seed in (1, 2, 3)]
    works = [
        Work(adapters[0], pairs(1, 2), 2.0, objective, compared=True),
        Work(adapters[1], rows(2, 3, 30), compared=True),
        Work(adapters[2], rows(3, 2, 30)),
    ]
    together = [only([outcome]) for outcome in engine.evaluate(works)]
    monkeypatch.setattr(objectives, "TILE", 1)  # one position at a time
    for work, beside in zip(works, together, strict=True):
        alone = only(engine.evaluate([work]))
        for name, value in vars(alone).items():
            assert vars(beside)[name] == pytest.approx(value, rel=1e-5)
        assert bool(alone.divergence) == work.compared


def test_an_untouched_adapter_is_where_the_base_is(engine: Engine) -> None:
    adapter = engine.create_adapter(settings())
    assert only(engine.evaluate([Work(adapter, rows(1, 3), compared=True)])).divergence == 0


def test_training_is_not_compared(engine: Engine) -> None:
    adapter, batch = trained(engine), rows(4, 2)
    outcomes = []
    for compared in (False, True):
        outcomes.append(only(engine.forward_backward([Work(adapter, batch, labelled(batch), compared=compared)])))
        engine.optim_step([(adapter, AdamParams(0.0))])
    assert outcomes[0] == outcomes[1]
