"""Packed rows: each example gets what it would get in a row of its own, and no job's bits depend on who packs.

transformers keeps the examples of a row apart by positions that begin anew, where no attention mask is given.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from tests.trainer.engine.conftest import labelled, only, rows, settings, train_together
from tests.trainer.engine.test_engine_isolation import flat
from tests.trainer.engine.test_engine_mixed import equal_rows
from tests.trainer.engine.test_engine_parity import SHAPE, TOLERANCE, gradient_difference, peft_losses, peft_model
from trainer.engine.adapter import Adapter, Work
from trainer.engine.base import load_engine
from trainer.engine.engine import Engine
from trainer.engine.plan import Demand, Row, cut, plan


def packed(examples: list[Row]) -> Row:
    starts = np.cumsum([0, *(len(example.input_ids) for example in examples[:-1])])
    return Row(
        np.concatenate([example.input_ids for example in examples]),
        np.concatenate([example.weights for example in examples]),
        tuple(starts.tolist()),
    )


def packs(seed: int, sizes: tuple[int, ...] = (3, 1, 2)) -> list[Row]:
    """Rows of different lengths, so that some are padded, with so many examples each."""
    return [packed(rows(10 * seed + number, size, 40)) for number, size in enumerate(sizes)]


def apart(packs: list[Row]) -> list[Row]:
    return [example for row in packs for example in row.examples()]


def trained(engine: Engine, seed: int = 1) -> Adapter:
    adapter = engine.create_adapter(settings(seed=seed))
    for step in range(4):
        train_together(engine, [(adapter, rows(100 * seed + step, 2), 1e-2)])
    return adapter


def gradient(engine: Engine, adapter: Adapter, batch: list[Row]) -> tuple[float, torch.Tensor]:
    measured = only(engine.forward_backward([Work(adapter, batch, labelled(batch))]))
    grads = adapter.bank.grads[adapter.slot].clone()
    adapter.bank.grads[adapter.slot].zero_()
    return measured.loss, grads


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_train_as_their_examples_in_rows_of_their_own(engine: Engine, attention: str) -> None:
    engine._passes._stepper._model.set_attn_implementation(attention)
    adapter, batch = trained(engine), packs(1)
    loss, grads = gradient(engine, adapter, batch)
    expected_loss, expected = gradient(engine, adapter, apart(batch))
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert float((grads - expected).norm() / expected.norm()) < TOLERANCE
    for start, example in zip(batch[0].starts, batch[0].examples(), strict=True):
        weights = np.zeros_like(batch[0].weights)
        weights[start : start + len(example.weights)] = example.weights
        within = only(engine.evaluate([Work(adapter, [Row(batch[0].input_ids, weights, batch[0].starts)])]))
        assert within.loss == pytest.approx(only(engine.evaluate([Work(adapter, [example])])).loss, rel=TOLERANCE)


def test_packed_rows_are_those_of_peft(engine: Engine, tiny_base_dir: Path, tmp_path: Path) -> None:
    adapter, batch = trained(engine), packs(2)
    engine.export(adapter, tmp_path, "tiny")
    model = peft_model(tiny_base_dir, tmp_path)
    expected = peft_losses(model, apart(batch))
    (expected / labelled(batch)).backward()
    measured = only(engine.forward_backward([Work(adapter, batch, labelled(batch))]))
    assert measured.loss == pytest.approx(expected.item(), rel=TOLERANCE)
    assert measured.weight == labelled(apart(batch))
    assert gradient_difference(engine, adapter, model) < TOLERANCE


def test_an_example_sees_nothing_of_those_before_it(engine: Engine) -> None:
    adapter = trained(engine)
    first, other, last = equal_rows(1)[0], equal_rows(2)[0], equal_rows(3)[0]
    hidden = [Row(row.input_ids, row.weights * 0) for row in (first, other)]
    losses = [only(engine.evaluate([Work(adapter, [packed([before, last])])])).loss for before in hidden]
    assert losses[0] == losses[1]
    together = Row(np.concatenate((first.input_ids, last.input_ids)), np.concatenate((hidden[0].weights, last.weights)))
    assert only(engine.evaluate([Work(adapter, [together])])).loss != pytest.approx(losses[0], rel=1e-3)


def test_the_first_token_of_an_example_is_predicted_by_nothing(engine: Engine) -> None:
    adapter = engine.create_adapter(settings())
    ones = [Row(row.input_ids, row.weights * 0 + 1) for row in rows(4, 3)]
    expected = only(engine.evaluate([Work(adapter, ones)])).loss
    assert only(engine.evaluate([Work(adapter, [packed(ones)])])).loss == pytest.approx(expected, rel=TOLERANCE)


def test_packed_rows_never_share_a_pass_with_others() -> None:
    mixed = [*packs(1, (2, 1)), *packs(2, (1, 3))]
    assert [[row.packed for row in part] for part in cut(mixed, 4096)] == [[False, False], [True, True]]
    demands = [Demand(batch, 1.0, 4096, (8, n)) for n, batch in enumerate((mixed, rows(1, 2), packs(3, (2,))))]
    for batch in plan(demands, 4096):
        kinds = {bool((ids.diff() != 1).any()) for ids in batch.position_ids}
        assert len(kinds) == 1


def test_a_result_is_bitwise_the_same_whether_or_not_a_neighbour_packs(engine: Engine) -> None:
    def beside(neighbour: list[Row] | None) -> torch.Tensor:
        adapters = [engine.create_adapter(settings(seed=seed)) for seed in (1, 2)]
        for step in range(4):
            jobs = [(adapters[0], equal_rows(step), 5e-3)]
            if neighbour is not None:
                jobs.append((adapters[1], neighbour, 5e-3))
            train_together(engine, jobs)
        end = flat(adapters[0])
        for adapter in adapters:
            engine.release(adapter)
        return end

    alone = beside(None)
    assert torch.equal(beside(packs(5, (2, 2))), alone)
    assert torch.equal(beside(packs(6, (3,))), alone)


@pytest.mark.parametrize("kind", ["OPTConfig", "FalconConfig"])
def test_a_base_that_does_not_keep_examples_apart_gets_them_in_rows_of_their_own(tmp_path: Path, kind: str) -> None:
    more = {"OPTConfig": {"ffn_dim": 96, "word_embed_proj_dim": 64}, "FalconConfig": {"alibi": True}}
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**SHAPE, **more[kind]})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    engine = load_engine(str(tmp_path), "cpu", threads=1)
    assert not engine._passes._packs
    adapter, batch = trained(engine), packs(1)
    loss, grads = gradient(engine, adapter, batch)
    expected_loss, expected = gradient(engine, adapter, apart(batch))
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert float((grads - expected).norm() / expected.norm()) < TOLERANCE
