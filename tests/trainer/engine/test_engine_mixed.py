"""Steps of many adapters at once: the losses of solo PEFT, nothing of a neighbour, failures that stay alone."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from tests.trainer.engine.conftest import labelled, only, rows, settings, train_step, train_together
from tests.trainer.engine.test_engine_isolation import Tight, flat, poison
from tests.trainer.engine.test_engine_parity import (
    SHAPE,
    STEPS,
    TOLERANCE,
    gradient_difference,
    peft_losses,
    peft_model,
)
from trainer.engine.adapter import Adapter, NonFinite, OutOfMemory, Work
from trainer.engine.base import load_engine
from trainer.engine.engine import Engine
from trainer.engine.optimizer import AdamParams, learning_rate
from trainer.engine.plan import Demand, Row, bucket, plan
from trainer.engine.wrap import recompute_layers

RANKS = (4, 8, 16, 32, 8, 6)
RATES = (1e-3, 5e-3, 2e-3, 1e-2, 3e-3, 4e-3)
DECAYS = (0.0, 0.1, 0.01, 0.0, 0.5, 0.0)
CLIPS = (1.0, math.inf, 0.1, 1.0, 0.5, 2.0)
SCHEDULES = ("linear", "cosine", "constant", "linear", "cosine", "linear")
SIZES = (1, 2, 3, 1, 2, 1)
LENGTHS = (20, 40, 60, 100, 15, 60)


def jobs_batch(job: int, step: int) -> list[Row]:
    return rows(1000 * job + step, SIZES[job], LENGTHS[job])


def adam(job: int, step: int) -> AdamParams:
    rate = learning_rate(RATES[job], step, STEPS, 0.1, SCHEDULES[job])  # type: ignore[arg-type]
    return AdamParams(rate, weight_decay=DECAYS[job], max_grad_norm=CLIPS[job])


@pytest.mark.parametrize("recompute", [False, True])
def test_twenty_mixed_steps_of_unlike_jobs_are_those_of_peft_alone(
    engine: Engine, tiny_base_dir: Path, tmp_path: Path, recompute: bool
) -> None:
    if recompute:
        recompute_layers(engine._passes._stepper._model)
    adapters = [engine.create_adapter(settings(rank, seed=job)) for job, rank in enumerate(RANKS)]
    losses: list[list[float]] = []
    for job, adapter in enumerate(adapters):
        engine.export(adapter, tmp_path / str(job), "tiny")
    for step in range(STEPS):
        works = [Work(a, jobs_batch(job, step), labelled(jobs_batch(job, step))) for job, a in enumerate(adapters)]
        losses.append([only([outcome]).mean_loss for outcome in engine.forward_backward(works)])
        engine.optim_step([(adapter, adam(job, step)) for job, adapter in enumerate(adapters)])
    for job in range(len(RANKS)):
        model = peft_model(tiny_base_dir, tmp_path / str(job))
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=DECAYS[job])
        for step in range(STEPS):
            batch = jobs_batch(job, step)
            optimizer.zero_grad()
            loss = peft_losses(model, batch) / labelled(batch)
            loss.backward()
            assert losses[step][job] == pytest.approx(loss.item(), rel=TOLERANCE)
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPS[job])
            optimizer.param_groups[0]["lr"] = adam(job, step).learning_rate
            optimizer.step()


def equal_rows(seed: int, length: int = 30) -> list[Row]:
    """Rows of one shape, whatever the seed."""
    random = np.random.default_rng(seed)
    weights = np.ones(length, dtype=np.float32)
    weights[: length // 2] = 0
    return [Row(random.integers(4, 384, length).astype(np.int32), weights) for _ in range(2)]


def beside(engine: Engine, neighbours: int, place: int) -> torch.Tensor:
    """The end of one job that shares its steps with three others, in the slot `place` among them."""
    adapters = [engine.create_adapter(settings(seed=neighbours + number)) for number in range(4)]
    engine.release(adapters[place])
    adapters[place] = engine.create_adapter(settings(seed=1))
    for step in range(6):
        seeds = [neighbours * 100 + 10 * number + step for number in range(4)]
        seeds[place] = step
        train_together(engine, [(a, equal_rows(seed), 5e-3) for a, seed in zip(adapters, seeds, strict=True)])
    result = flat(adapters[place])
    for adapter in adapters:
        engine.release(adapter)
    return result


def test_a_result_is_bitwise_the_same_beside_any_neighbours_of_equal_shapes(engine: Engine) -> None:
    expected = beside(engine, neighbours=10, place=0)
    assert torch.equal(beside(engine, neighbours=20, place=0), expected)
    assert torch.equal(beside(engine, neighbours=30, place=2), expected)


def test_neighbours_that_come_and_go_move_a_result_by_rounding_alone(engine: Engine) -> None:
    solo = engine.create_adapter(settings())
    expected = [train_step(engine, solo, rows(step, 2)).mean_loss for step in range(STEPS)]
    engine.release(solo)
    others = [engine.create_adapter(settings(rank, seed=rank)) for rank in (16, 8)]
    adapter = engine.create_adapter(settings())
    for step in range(STEPS):
        if step in (4, 9):
            others.append(engine.create_adapter(settings(8, seed=step)))
        if step == 12:
            engine.release(others.pop(1))
        beside = [(other, rows(500 + 20 * number + step, 1 + number), 1e-2) for number, other in enumerate(others)]
        measured = train_together(engine, [*beside, (adapter, rows(step, 2), 5e-3)])[-1]
        assert measured.mean_loss == pytest.approx(expected[step], rel=TOLERANCE)


@pytest.mark.parametrize("sickness", ["weights", "gradient"])
def test_a_job_that_is_not_finite_leaves_those_in_its_pass_bitwise_alone(engine: Engine, sickness: str) -> None:
    ends = []
    for sick_now in (False, True):
        sick, *healthy = [engine.create_adapter(settings(seed=seed)) for seed in (3, 4, 5)]
        for step in range(6):
            if sick_now and sickness == "weights":
                sick.bank.pair(sick.bank.values, sick.slot, 0)[1][:8] = math.nan
            outcomes = engine.forward_backward(
                [Work(a, equal_rows(step + a.settings.seed), 30.0) for a in (sick, *healthy)]
            )
            if sick_now and sickness == "gradient":
                sick.bank.grads[sick.slot, 5] = math.inf
            norms = engine.optim_step([(adapter, AdamParams(5e-3, max_grad_norm=1.0)) for adapter in (sick, *healthy)])
            if sick_now:
                assert isinstance(outcomes[0] if sickness == "weights" else norms[0], NonFinite)
                assert not sick.bank.grads[sick.slot].any()
        ends.append([flat(adapter) for adapter in healthy])
        if sick_now:
            poison(sick)
        for adapter in (sick, *healthy):
            engine.release(adapter)
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_too_little_memory_costs_passes_and_the_one_row_that_never_fits_its_own_job(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = [engine.create_adapter(settings(seed=seed)) for seed in (1, 2, 3)]
    batches = [rows(1, 3, 40), rows(2, 2, 40), rows(3, 3, 40)]
    calm = engine.forward_backward([Work(a, b, 1.0) for a, b in zip(adapters, batches, strict=True)])
    expected = [adapter.bank.grads[adapter.slot].clone() for adapter in adapters]
    for adapter in adapters:
        engine.optim_step([(adapter, AdamParams(0.0))])
    tight = Tight(engine, 50)
    monkeypatch.setattr(engine._passes._stepper, "train", tight.train)
    huge = engine.create_adapter(settings(seed=4))
    works = [Work(a, b, 1.0) for a, b in zip(adapters, batches, strict=True)]
    *fine, failed = engine.forward_backward([*works, Work(huge, equal_rows(9, 60), 1.0)])
    assert isinstance(failed, OutOfMemory)
    assert not huge.bank.grads[huge.slot].any()
    assert tight.passes[0] > 50
    for adapter, outcome, before, grads in zip(adapters, fine, calm, expected, strict=True):
        assert only([outcome]).loss == pytest.approx(only([before]).loss, rel=TOLERANCE)
        assert float((adapter.bank.grads[adapter.slot] - grads).norm() / grads.norm()) < TOLERANCE


def test_an_error_in_a_shared_pass_reaches_the_job_it_belongs_to(engine: Engine) -> None:
    good, bad = (engine.create_adapter(settings(seed=seed)) for seed in (1, 2))
    foreign = [Row(np.full(9, 384, dtype=np.int32), np.ones(9, dtype=np.float32))]
    first, second = engine.forward_backward([Work(good, rows(1, 2), 5.0), Work(bad, foreign, 5.0)])
    assert isinstance(second, IndexError)
    alone = engine.create_adapter(settings(seed=1))
    expected = only(engine.forward_backward([Work(alone, rows(1, 2), 5.0)]))
    assert only([first]) == expected
    assert torch.equal(good.bank.grads[good.slot], alone.bank.grads[alone.slot])


@pytest.mark.parametrize("kind", ["MixtralConfig", "OPTConfig", "Phi3Config"])
def test_bases_that_rearrange_tokens_keep_jobs_apart(tmp_path: Path, kind: str) -> None:
    more = {"MixtralConfig": {"num_local_experts": 2}, "OPTConfig": {"ffn_dim": 96, "word_embed_proj_dim": 64}}
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**SHAPE, **more.get(kind, {})})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    engine = load_engine(str(tmp_path / "base"), "cpu", threads=1)
    adapters = [engine.create_adapter(settings(rank, seed=rank)) for rank in (8, 12, 4)]
    for step in range(3):
        train_together(engine, [(a, rows(step + 10 * n, 1 + n), 5e-3) for n, a in enumerate(adapters)])
    batches = [rows(50 + number, 2) for number in range(3)]
    engine.forward_backward([Work(a, b, labelled(b)) for a, b in zip(adapters, batches, strict=True)])
    for number, (adapter, batch) in enumerate(zip(adapters, batches, strict=True)):
        engine.export(adapter, tmp_path / str(number), "tiny")
        model = peft_model(tmp_path / "base", tmp_path / str(number)).eval()
        (peft_losses(model, batch) / labelled(batch)).backward()
        assert gradient_difference(engine, adapter, model) < TOLERANCE


def test_validation_of_one_job_beside_another_is_that_of_the_job_alone(engine: Engine) -> None:
    adapters: list[Adapter] = [engine.create_adapter(settings(seed=seed)) for seed in (1, 2)]
    train_together(engine, [(adapter, rows(number, 2), 1e-2) for number, adapter in enumerate(adapters)])
    works = [Work(adapter, rows(70 + number, 5)) for number, adapter in enumerate(adapters)]
    together = [only([outcome]).mean_loss for outcome in engine.evaluate(works)]
    assert together == pytest.approx([only(engine.evaluate([work])).mean_loss for work in works], rel=TOLERANCE)


def test_every_row_is_planned_once_and_a_pass_holds_no_more_than_it_may() -> None:
    demands = [Demand(jobs_batch(job, 0) * (1 + 4 * (job % 2)), 1.0, 4096, (8, job)) for job in range(6)]
    batches = plan(demands, 256)
    planned = [0] * 6
    for batch in batches:
        assert len({share.demand for share in batch.shares}) == len(batch.shares)
        assert len(batch.shares) == 1 or batch.input_ids.numel() <= 256
        for share in batch.shares:
            planned[share.demand] += share.rows
    assert planned == [len(demand.rows) for demand in demands]
    assert any(len(batch.shares) > 1 for batch in batches)


@pytest.mark.parametrize(
    ("length", "padded"), [(1, 8), (8, 8), (9, 16), (65, 80), (129, 192), (513, 768), (2049, 3072), (3073, 4096)]
)
def test_lengths_fall_into_few_buckets(length: int, padded: int) -> None:
    assert bucket(length) == padded
