"""What jobs cost by formula, against what the engine really allocates, and the account of who holds how much."""

import random
from dataclasses import replace

import pytest
import torch

from tests.trainer.engine.conftest import rows as some_rows
from tests.trainer.engine.conftest import settings, train_step
from trainer.engine.engine import Engine
from trainer.engine.memory import LEAST_BUDGET, Account, BaseSize, Shape, copy_bytes, slot_bytes
from trainer.engine.slots import RANK_CLASSES, SlotBank

MIB = 1 << 20
BASE = BaseSize(layers=2, hidden=64, touched=1856, vocabulary=384, item=4, recompute=False)


def shape(engine: Engine, rank: int = 8, longest: int = 60, **more: object) -> Shape:
    plain = Shape(
        rank=rank,
        own_rank=rank,
        trained=(True,) * len(engine.modules),
        rows=2,
        longest=longest,
        longest_validated=0,
        paired=False,
    )
    return replace(plain, **more)  # type: ignore[arg-type]


def account(engine: Engine, limit: int = 1 << 30) -> Account:
    return Account(BASE, engine.modules, limit, token_budget=512, shared_budget=256, on_host=True)


def allocated(bank: SlotBank) -> int:
    return sum(rows.numel() * rows.element_size() for rows in (bank.values, bank.grads, bank.exp_avg, bank.exp_avg_sq))


@pytest.mark.parametrize("rank", RANK_CLASSES)
def test_a_slot_is_what_the_bank_allocates(engine: Engine, rank: int) -> None:
    adapter = engine.create_adapter(settings(rank))
    assert allocated(adapter.bank) == slot_bytes(engine.modules, rank)


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj")])
def test_a_copy_is_what_a_checkpoint_holds_of_the_weights(engine: Engine, targets: str | tuple[str, ...]) -> None:
    adapter = engine.create_adapter(settings(12, targets=targets))
    weights, moments = engine.save(adapter)
    size = copy_bytes(engine.modules, 12, adapter.trained)
    assert sum(part.numel() * 4 for part in weights.values()) == size
    assert sum(part.numel() * 4 for part in moments.values()) == 2 * size


@pytest.mark.parametrize("seed", range(5))
def test_the_account_knows_how_large_every_bank_is_as_jobs_come_and_go(engine: Engine, seed: int) -> None:
    chance, books = random.Random(seed), account(engine)
    residents: dict[str, tuple[object, object]] = {}
    for number in range(60):
        if residents and chance.random() < 0.45:
            name = chance.choice(sorted(residents))
            adapter, _ = residents.pop(name)
            engine.release(adapter)  # type: ignore[arg-type]
            books.leave(name)
        else:
            rank = chance.choice(RANK_CLASSES)
            need = books.need(shape(engine, rank))
            residents[str(number)] = engine.create_adapter(settings(rank)), need
            books.enter(str(number), need)
        assert books.limit - books.free == sum(allocated(bank) for bank in engine._banks.values())


def test_a_bank_that_grows_must_fit_twice(engine: Engine) -> None:
    books = account(engine, 10 * MIB)
    need = replace(books.need(shape(engine, 64)), transient=0)
    for number in range(2):
        assert books.fits(need)
        books.enter(str(number), need)
    # Two slots become four, and for a moment all six are there.
    assert books.needed(need) == 4 * need.slot
    assert 6 * need.slot > 10 * MIB
    assert not books.fits(need)
    books.leave("0")
    assert books.needed(need) == 0


def test_what_passes_take_must_be_free_once_and_not_for_every_job(engine: Engine) -> None:
    books = account(engine)
    need = books.need(shape(engine, longest=200, rows=1))
    assert need.alone == need.slot + need.transient
    books.enter("a", need)
    assert books.needed(need) - need.transient < BASE.training_pass(256) + need.slot
    larger = books.need(shape(engine, longest=500))
    assert larger.transient > 1.9 * need.transient
    assert larger.transient < books.needed(larger) < larger.transient + 3 * larger.slot


def test_validation_pairs_and_long_rows_cost_more(engine: Engine) -> None:
    books = account(engine)
    plain = books.need(shape(engine))
    validated = books.need(shape(engine, longest_validated=60))
    assert validated.copies == copy_bytes(engine.modules, 8, (True,) * len(engine.modules)) > plain.copies == 0
    assert books.need(shape(engine, paired=True)).transient > 2 * plain.transient
    assert books.need(shape(engine, longest=500)).transient > 3 * plain.transient
    on_device = replace(books, on_host=False)
    assert on_device.need(shape(engine, longest_validated=60)).copies == 0


def test_recomputed_layers_take_less_and_a_large_vocabulary_more() -> None:
    tall = replace(BASE, layers=32, touched=32 * 928)
    assert replace(tall, recompute=True).training_pass(1000) < tall.training_pass(1000) / 2
    assert BASE.evaluation_pass(1000) < BASE.training_pass(1000)
    assert replace(BASE, vocabulary=150_000).training_pass(1) > 4 * 4 * 150_000
    assert BASE.training_pass(2000) == pytest.approx(2 * BASE.training_pass(1000), rel=1e-6)


def test_the_budget_of_a_pass_is_halved_until_half_of_the_room_is_left_to_jobs() -> None:
    assert BASE.budget(4096, 2 * BASE.training_pass(4096)) == 4096
    assert BASE.budget(4096, 2 * BASE.training_pass(4096) - 1) == 2048
    assert BASE.budget(4096, 0) == LEAST_BUDGET


def test_the_pass_of_a_job_is_no_larger_than_the_formula_says(engine: Engine) -> None:
    """The bytes that autograd keeps, counted one by one: the formula must not fall below them."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    adapter = engine.create_adapter(settings())
    batch = some_rows(3, 8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        train_step(engine, adapter, batch)
    weights = {part.untyped_storage().data_ptr() for part in engine._passes._stepper._model.parameters()}
    saved = sum(size for pointer, size in kept.items() if pointer not in weights)
    formula = BASE.training_pass(8 * 64)
    assert saved < formula < 6 * saved
