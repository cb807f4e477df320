"""What trainers of many adapters have been seen to get wrong, and the test of each.

| what must hold | test |
|---|---|
| a job's loss is over its own whole batch, however it is cut and whoever is beside it | below: `weighs`, `pads` |
| a hand-written backward is that of autograd | below: `autograd`; parity: `gradients_are_those_of_peft`, `recomputed` |
| the optimizer touches its own job only | isolation: `weight_decay_and_moments_stay_in_their_slot` |
| a slot that is used again starts clean | isolation: `a_poisoned_slot`, `gradients_that_were_never_applied` |
| Adam's step count is the job's own | below: `late` |
| the clip is the job's own | below: `clip` |
| rate, schedule, rank, alpha and targets are the job's own | mixed: `twenty_mixed_steps`; below: `alpha` |
| randomness is the job's own | below: `random`; parity: `the_start_has_pefts_distribution` |
| no job's or example's attention sees another's tokens | packing: `sees_nothing`; below: `causal` |
| what is not finite stays in its job | mixed, isolation, preference: `not_finite`; blast_radius |
| neighbours change nothing but rounding, and at equal shapes nothing at all | mixed, preference: `any_neighbours` |
| a job that is put away and fetched again goes on as if it had stayed | isolation: `saved_state_goes_on` |
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from tests.trainer.engine.conftest import labelled, only, rows, settings, train_together
from tests.trainer.engine.test_engine_isolation import flat
from tests.trainer.engine.test_engine_mixed import equal_rows
from tests.trainer.engine.test_engine_parity import SHAPE, TOLERANCE
from trainer.engine.adapter import Adapter, AdapterSettings, Work
from trainer.engine.base import load_engine
from trainer.engine.engine import Engine
from trainer.engine.lowrank import Group, Layout, LowRankLinear
from trainer.engine.optimizer import AdamParams
from trainer.engine.plan import Row
from trainer.engine.slots import ModuleShape, SlotBank


def moved(engine: Engine, seed: int = 1) -> Adapter:
    """B is zero at the start and would hide A's gradient."""
    adapter = engine.create_adapter(settings(seed=seed))
    for number in range(len(engine.modules)):
        right = adapter.bank.pair(adapter.bank.values, adapter.slot, number)[1]
        right.copy_(torch.randn(right.shape, generator=torch.Generator().manual_seed(number)) * 0.02)
    return adapter


def gradient(engine: Engine, adapter: Adapter, works: list[Work]) -> torch.Tensor:
    for outcome in engine.forward_backward(works):
        only([outcome])
    found = adapter.bank.grads[adapter.slot].clone()
    engine.optim_step([(work.adapter, AdamParams(0.0)) for work in works])
    return found


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_a_batch_weighs_the_same_however_many_tokens_its_neighbours_have(engine: Engine) -> None:
    adapter, few, many = moved(engine), rows(1, 2), rows(2, 8)
    work = Work(adapter, few, labelled(few))
    alone = gradient(engine, adapter, [work])
    others = [Work(moved(engine, seed), many * seed, labelled(many) * seed) for seed in (2, 3)]
    assert apart(gradient(engine, adapter, [*others, work]), alone) < TOLERANCE
    parts = torch.zeros_like(alone)
    for row in few:
        parts += gradient(engine, adapter, [*others, Work(adapter, [row], labelled(few))])
    assert apart(parts, alone) < TOLERANCE


def test_pads_are_neither_trained_nor_counted(engine: Engine) -> None:
    adapter, (short,) = moved(engine), rows(3, 1, 12)
    alone = gradient(engine, adapter, [Work(adapter, [short], 1.0)])
    (long,) = equal_rows(1, 60)[:1]
    unlabelled = Row(long.input_ids, long.weights * 0)
    assert apart(gradient(engine, adapter, [Work(adapter, [short, unlabelled], 1.0)]), alone) < TOLERANCE
    both = [only(engine.evaluate([Work(adapter, [short, *more])])) for more in ([], [unlabelled])]
    assert both[1].loss == pytest.approx(both[0].loss, rel=TOLERANCE)
    assert (both[1].weight, both[1].correct) == (both[0].weight, both[0].correct)


@pytest.mark.parametrize("reference", [0, 2])
def test_the_layers_backward_is_that_of_autograd(reference: int) -> None:
    """In double precision: of what goes in, and of every slot's A and B."""
    torch.manual_seed(0)
    shape = ModuleShape("m", 5, 7)
    bank = SlotBank(8, (shape,), torch.device("cpu"))
    slots = [bank.allocate(scale, (True,)) for scale in (0.5, 2.0)]
    bank.values, bank.grads = torch.randn_like(bank.values).double(), bank.grads.double()
    bank._spans.clear()
    layout = Layout((Group(bank.span(0, 2), 0, 4),), 4 + reference, 3, jobs=2, adapted=4)
    base = torch.nn.Linear(5, 7).double().requires_grad_(False)
    x, anchor = torch.randn(4 + reference, 3, 5).double(), torch.zeros((), requires_grad=True)
    upper = torch.randn(4 + reference, 3, 7).double()
    upper[4:] = 0

    def plain(x: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        low = [x[2 * s : 2 * s + 2] @ factors[2 * s] @ factors[2 * s + 1] * scale for s, scale in ((0, 0.5), (1, 2.0))]
        return base(x) + torch.cat((*low, torch.zeros(reference, 3, 7)))

    factors = [part.clone().requires_grad_() for slot in slots for part in bank.pair(bank.values, slot, 0)]
    into = x.clone().requires_grad_()
    expected = torch.autograd.grad((plain(into, *factors) * upper).sum(), [into, *factors])
    given = x.clone().requires_grad_()
    result = LowRankLinear.apply(given, anchor, base, 0, layout)
    assert torch.allclose(result, plain(x, *factors), rtol=1e-12)
    (found,) = torch.autograd.grad(result, given, upper)
    grads = [part for slot in slots for part in bank.pair(bank.grads, slot, 0)]
    for ours, theirs in zip((found, *grads), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_late_jobs_first_steps_are_first_steps(engine: Engine) -> None:
    """Another's step count would take most of Adam's bias correction away."""
    old = engine.create_adapter(settings(seed=2))
    for step in range(30):
        train_together(engine, [(old, equal_rows(100 + step), 1e-3)])
    late = engine.create_adapter(settings(seed=3))
    before = flat(late)[0]
    train_together(engine, [(old, equal_rows(200), 1e-3), (late, equal_rows(1), 1e-3)])
    largest = float((flat(late)[0] - before).abs().max())
    assert largest == pytest.approx(1e-3, rel=0.05)  # a first step is the learning rate
    assert (old.steps, late.steps) == (31, 1)


def test_the_clip_is_by_the_jobs_own_norm(engine: Engine) -> None:
    def moments(neighbour: float | None) -> torch.Tensor:
        adapter, other = moved(engine), moved(engine, 2)
        works = [Work(adapter, equal_rows(1), 30.0)]
        if neighbour is not None:
            works.append(Work(other, equal_rows(2), neighbour))
        engine.forward_backward(works)
        norms = engine.optim_step([(work.adapter, AdamParams(1e-3, max_grad_norm=0.01)) for work in works])
        found = flat(adapter)[1]
        engine.release(adapter)
        engine.release(other)
        assert neighbour is None or float(norms[1]) > 100 * float(norms[0])  # type: ignore[arg-type]
        return found

    alone = moments(None)
    assert float(alone.norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert apart(moments(1e-3), alone) < TOLERANCE


def test_alpha_and_targets_are_the_jobs_own(engine: Engine) -> None:
    kinds = [(4, 32.0, "all-linear"), (8, 4.0, ("q_proj",)), (8, 16.0, ("down_proj", "v_proj")), (3, 1.0, "all-linear")]
    adapters = [engine.create_adapter(AdapterSettings(rank, alpha, to, seed=5)) for rank, alpha, to in kinds]
    batches = [rows(70 + number, 2) for number in range(len(kinds))]
    for _ in range(3):
        train_together(engine, [(a, batch, 5e-3) for a, batch in zip(adapters, batches, strict=True)])
    together = [flat(adapter)[0] for adapter in adapters]
    for (rank, alpha, to), batch, expected in zip(kinds, batches, together, strict=True):
        alone = engine.create_adapter(AdapterSettings(rank, alpha, to, seed=5))
        for _ in range(3):
            train_together(engine, [(alone, batch, 5e-3)])
        assert float((flat(alone)[0] - expected).abs().max()) < 1e-4 * float(expected.abs().max())
        engine.release(alone)


def test_random_numbers_that_others_draw_change_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dropouts = {"attention_dropout": 0.5, "hidden_dropout": 0.5}
    config = transformers.GPTNeoXConfig(**{**SHAPE, **dropouts})  # type: ignore[arg-type]
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    ends = []
    for seed in (1, 2):
        engine = load_engine(str(tmp_path), "cpu", threads=1)
        torch.manual_seed(seed)
        np.random.seed(seed)
        adapter = engine.create_adapter(settings())
        for step in range(3):
            train_together(engine, [(adapter, rows(step, 2), 5e-3)])
        ends.append(flat(adapter))
    assert torch.equal(*ends)


def test_a_causal_row_sees_neither_later_tokens_nor_other_rows(engine: Engine) -> None:
    adapter = moved(engine)
    row, other, third = (equal_rows(seed, 32)[0] for seed in (1, 2, 3))
    early = row.weights * 0
    early[1:16] = 1
    losses = set()
    for tail, beside in ((row, other), (other, third), (third, row)):
        ids = np.concatenate((row.input_ids[:16], tail.input_ids[16:]))
        unlabelled = Row(beside.input_ids, beside.weights * 0)
        losses.add(only(engine.evaluate([Work(adapter, [Row(ids, early), unlabelled])])).loss)
    assert len(losses) == 1
    assert math.isfinite(losses.pop())
