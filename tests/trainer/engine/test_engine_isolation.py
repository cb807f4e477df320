"""What one adapter may never do to another: leave something in a slot, share a NaN, or change a neighbour's result."""

import math

import pytest
import torch

from tests.trainer.engine.conftest import forward_backward, labelled, optim_step, rows, settings, train_step
from trainer.engine.adapter import Adapter, NonFinite, OutOfMemory
from trainer.engine.engine import Engine
from trainer.engine.lowrank import Layout
from trainer.engine.objectives import Sums
from trainer.engine.optimizer import AdamParams
from trainer.engine.plan import MicroBatch

STEPS = 6


def flat(adapter: Adapter) -> torch.Tensor:
    """Everything an adapter's slot holds, without the padding between modules."""
    bank = adapter.bank
    return torch.stack([part[adapter.slot] for part in (bank.values, bank.exp_avg, bank.exp_avg_sq)]).clone()


def alone(engine: Engine, rank: int = 8) -> torch.Tensor:
    adapter = engine.create_adapter(settings(rank))
    for step in range(STEPS):
        train_step(engine, adapter, rows(step, 2))
    result = flat(adapter)
    engine.release(adapter)
    return result


def poison(adapter: Adapter) -> None:
    bank = adapter.bank
    for part in (bank.values, bank.grads, bank.exp_avg, bank.exp_avg_sq):
        part[adapter.slot].fill_(math.nan)


def test_a_poisoned_slot_is_clean_for_the_next_adapter(engine: Engine) -> None:
    expected = alone(engine)
    neighbour = engine.create_adapter(settings(seed=9))
    poisoned = engine.create_adapter(settings(seed=7))
    poison(poisoned)
    poisoned.steps = 1000
    engine.release(poisoned)
    adapter = engine.create_adapter(settings())
    assert adapter.slot == poisoned.slot
    assert adapter.bank is neighbour.bank
    for step in range(STEPS):
        train_step(engine, adapter, rows(step, 2))
    assert torch.equal(flat(adapter), expected)


def test_gradients_that_were_never_applied_do_not_reach_the_next_adapter(engine: Engine) -> None:
    expected = alone(engine)
    engine.create_adapter(settings(seed=9))
    left = engine.create_adapter(settings(seed=7))
    forward_backward(engine, left, rows(3, 2), 1.0)
    engine.release(left)
    adapter = engine.create_adapter(settings())
    assert adapter.slot == left.slot
    for step in range(STEPS):
        train_step(engine, adapter, rows(step, 2))
    assert torch.equal(flat(adapter), expected)


@pytest.mark.parametrize("neighbour_rank", [8, 16])
def test_a_result_is_bitwise_the_same_beside_neighbours_that_come_and_go(engine: Engine, neighbour_rank: int) -> None:
    expected = alone(engine)
    first = engine.create_adapter(settings(neighbour_rank, seed=4))
    adapter = engine.create_adapter(settings())
    late = None
    for step in range(STEPS):
        train_step(engine, first, rows(100 + step, 3), rate=0.1)
        if step == 2:  # the bank grows and moves
            late = [engine.create_adapter(settings(8, seed=seed)) for seed in (5, 6, 7)]
        train_step(engine, adapter, rows(step, 2))
        if step == 4 and late:
            engine.release(late[0])
    assert torch.equal(flat(adapter), expected)


def test_a_bank_gives_its_memory_back_with_its_last_adapter(engine: Engine) -> None:
    adapters = [engine.create_adapter(settings(64, seed=seed)) for seed in range(3)]
    bank = adapters[0].bank
    assert len(bank.values) == 4
    for adapter in adapters:
        engine.release(adapter)
    assert len(bank.values) == 0


def test_a_job_that_is_not_finite_changes_nothing_of_itself_or_a_healthy_one(engine: Engine) -> None:
    expected = alone(engine)
    sick = engine.create_adapter(settings(seed=3))
    adapter = engine.create_adapter(settings())
    train_step(engine, sick, rows(70, 2))
    sick_before = flat(sick)
    for step in range(STEPS):
        sick.bank.pair(sick.bank.values, sick.slot, 0)[1][:8] = math.inf
        with pytest.raises(NonFinite):
            train_step(engine, sick, rows(70 + step, 2))
        assert not sick.bank.grads[sick.slot].any()
        assert torch.equal(flat(sick)[1:], sick_before[1:])
        train_step(engine, adapter, rows(step, 2))
    assert torch.equal(flat(adapter), expected)


def test_a_gradient_that_is_not_finite_is_caught_where_the_loss_is(engine: Engine) -> None:
    adapter = engine.create_adapter(settings())
    train_step(engine, adapter, rows(1, 2))
    before = flat(adapter)
    forward_backward(engine, adapter, rows(2, 2), 1.0)
    adapter.bank.grads[adapter.slot, 5] = math.nan
    with pytest.raises(NonFinite):
        optim_step(engine, adapter, AdamParams(1e-3))
    assert torch.equal(flat(adapter), before)
    assert adapter.steps == 1
    assert not adapter.bank.grads[adapter.slot].any()


def test_weight_decay_and_moments_stay_in_their_slot(engine: Engine) -> None:
    idle, busy = (engine.create_adapter(settings(seed=seed)) for seed in (1, 2))
    train_step(engine, idle, rows(0, 2))
    before = flat(idle)
    for step in range(4):
        forward_backward(engine, busy, rows(step, 2), 1.0)
        optim_step(engine, busy, AdamParams(0.1, weight_decay=0.5))
    assert torch.equal(flat(idle), before)


def test_saved_state_goes_on_in_another_slot_with_other_neighbours(engine: Engine) -> None:
    expected = alone(engine, rank=12)
    first = engine.create_adapter(settings(12))
    for step in range(3):
        train_step(engine, first, rows(step, 2))
    weights, moments = engine.save(first)
    for seed in (8, 9):
        engine.create_adapter(settings(12, seed=seed))
    engine.release(first)
    engine.create_adapter(settings(16, seed=10))
    again = engine.create_adapter(settings(12, seed=99))
    engine.load(again, weights, moments, 3)
    assert again.slot != first.slot
    for step in range(3, STEPS):
        train_step(engine, again, rows(step, 2))
    assert torch.equal(flat(again), expected)


class Tight:
    """A device that runs out of memory above a number of padded tokens."""

    def __init__(self, engine: Engine, limit: int) -> None:
        self._train, self._limit = engine._passes._stepper.train, limit
        self.passes: list[int] = []

    def train(self, batch: MicroBatch, layout: Layout) -> Sums:
        sums = self._train(batch, layout)
        self.passes.append(batch.input_ids.numel())
        if batch.input_ids.numel() > self._limit:
            raise torch.OutOfMemoryError("no more")
        return sums


def test_running_out_of_memory_halves_the_budget_of_that_job_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = rows(3, 8)
    calm = engine.create_adapter(settings(seed=5))
    forward_backward(engine, calm, batch, labelled(batch))
    tight = Tight(engine, 150)
    monkeypatch.setattr(engine._passes._stepper, "train", tight.train)
    adapter = engine.create_adapter(settings(seed=5))
    forward_backward(engine, adapter, batch, labelled(batch))
    one, other = calm.bank.grads[calm.slot], adapter.bank.grads[adapter.slot]
    assert float((one - other).norm() / one.norm()) < 2e-6
    assert tight.passes[0] > 150 >= tight.passes[-1]
    assert adapter.token_budget < calm.token_budget
    tight._limit = 10
    waiting = other.clone()
    with pytest.raises(OutOfMemory):
        forward_backward(engine, adapter, batch, labelled(batch))
    assert torch.equal(other, waiting)
