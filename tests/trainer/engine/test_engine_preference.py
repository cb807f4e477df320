"""Preference jobs against plain PEFT with DPO by hand, and against TRL; what they may never do to a neighbour."""

import math
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.trainer.engine.conftest import labelled, only, rows, settings, train_together
from tests.trainer.engine.preference import dpo_loss, dpo_margins, even_pairs, pairs
from tests.trainer.engine.test_engine_isolation import Tight, flat
from tests.trainer.engine.test_engine_mixed import equal_rows
from tests.trainer.engine.test_engine_parity import (
    SHAPE,
    STEPS,
    TOLERANCE,
    gradient_difference,
    peft_losses,
    peft_model,
)
from tests.trainer.tiny import tokenizer
from trainer.engine.adapter import Adapter, Measured, NonFinite, Preference, Work
from trainer.engine.base import load_engine
from trainer.engine.engine import Engine
from trainer.engine.optimizer import AdamParams
from trainer.engine.plan import Demand, Row, bucket, plan
from trainer.engine.wrap import recompute_layers

BETA = 0.1
"""float32 rounds a margin, a difference of sums of log-probabilities, in its sixth digit; the loss has that by beta."""


def preferring(adapter: Adapter, batch: list[Row], beta: float = BETA, compared: bool = False) -> Work:
    return Work(adapter, batch, len(batch) / 2, Preference(beta), compared)


def trained(engine: Engine, rank: int = 8, seed: int = 1) -> Adapter:
    """An adapter that has moved away from the base."""
    adapter = engine.create_adapter(settings(rank, seed=seed))
    for step in range(4):
        train_together(engine, [(adapter, rows(100 * seed + step, 2), 1e-2)])
    return adapter


def test_gradients_beside_a_supervised_job_are_those_of_peft(
    engine: Engine, tiny_base_dir: Path, tmp_path: Path
) -> None:
    preference, supervised = trained(engine, 12), trained(engine, 8, seed=2)
    chosen, plain = pairs(1, 3), rows(2, 2, 30)
    for name, adapter in (("p", preference), ("s", supervised)):
        engine.export(adapter, tmp_path / name, "tiny")
    outcomes = engine.forward_backward([preferring(preference, chosen), Work(supervised, plain, labelled(plain))])
    model = peft_model(tiny_base_dir, tmp_path / "p")
    loss = dpo_loss(model, chosen, BETA)
    (loss / 3).backward()
    assert only([outcomes[0]]).loss == pytest.approx(loss.item(), rel=TOLERANCE)
    assert gradient_difference(engine, preference, model) < TOLERANCE
    model = peft_model(tiny_base_dir, tmp_path / "s")
    (peft_losses(model, plain) / labelled(plain)).backward()
    assert gradient_difference(engine, supervised, model) < TOLERANCE


@pytest.mark.parametrize("recompute", [False, True])
def test_twenty_mixed_steps_of_unlike_objectives_are_those_of_peft_alone(
    engine: Engine, tiny_base_dir: Path, tmp_path: Path, recompute: bool
) -> None:
    if recompute:
        recompute_layers(engine._passes._stepper._model)
    betas: tuple[float | None, ...] = (BETA, None, 0.05)
    adapters = [engine.create_adapter(settings(rank, seed=rank)) for rank in (8, 12, 4)]
    losses: list[list[float]] = []
    params = [AdamParams(rate, weight_decay=0.01, max_grad_norm=1.0) for rate in (5e-3, 2e-3, 1e-3)]
    for job, adapter in enumerate(adapters):
        engine.export(adapter, tmp_path / str(job), "tiny")

    def batch(job: int, step: int) -> list[Row]:
        return rows(1000 * job + step, 2) if betas[job] is None else pairs(1000 * job + step, 1 + job)

    for step in range(STEPS):
        works = [
            Work(adapter, batch(job, step), labelled(batch(job, step)))
            if beta is None
            else preferring(adapter, batch(job, step), beta)
            for job, (adapter, beta) in enumerate(zip(adapters, betas, strict=True))
        ]
        losses.append([only([outcome]).mean_loss for outcome in engine.forward_backward(works)])
        engine.optim_step(list(zip(adapters, params, strict=True)))
    assert losses[-1][0] < losses[0][0]
    for job, beta in enumerate(betas):
        model = peft_model(tiny_base_dir, tmp_path / str(job))
        optimizer = torch.optim.AdamW(model.parameters(), lr=params[job].learning_rate, weight_decay=0.01)
        for step in range(STEPS):
            made = batch(job, step)
            optimizer.zero_grad()
            loss = (
                peft_losses(model, made) / labelled(made)
                if beta is None
                else dpo_loss(model, made, beta) / (len(made) / 2)
            )
            loss.backward()
            assert losses[step][job] == pytest.approx(loss.item(), rel=TOLERANCE)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


def test_the_loss_is_that_of_trl(engine: Engine, tiny_base_dir: Path, tmp_path: Path) -> None:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    adapter = engine.create_adapter(settings())
    engine.export(adapter, tmp_path / "start", "tiny")
    trainer = DPOTrainer(
        # An adapter that changes nothing, which TRL copies as its reference.
        model=peft_model(tiny_base_dir, tmp_path / "start"),
        args=DPOConfig(str(tmp_path), beta=BETA, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[]),
        train_dataset=Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}),
        processing_class=tokenizer(),
    )
    for step in range(3):
        engine.forward_backward([preferring(adapter, pairs(step, 2))])
        engine.optim_step([(adapter, AdamParams(1e-2))])
    engine.export(adapter, tmp_path / "end", "tiny")
    set_peft_model_state_dict(trainer.model, load_file(tmp_path / "end" / "adapter_model.safetensors"))
    batch = pairs(9, 3)
    examples = [
        {
            "prompt_ids": chosen.input_ids[chosen.weights == 0].tolist(),
            "chosen_ids": chosen.input_ids[chosen.weights == 1].tolist(),
            "rejected_ids": rejected.input_ids[rejected.weights == 1].tolist(),
        }
        for chosen, rejected in zip(batch[::2], batch[1::2], strict=True)
    ]
    with torch.no_grad():
        loss = trainer._compute_loss(trainer.model, DataCollatorForPreference(0)(examples), return_outputs=False)
    told = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    measured = only(engine.evaluate([preferring(adapter, batch)]))
    assert measured.mean_loss == pytest.approx(float(loss), rel=TOLERANCE)
    assert measured.margin / measured.count == pytest.approx(told["rewards/margins"], abs=5e-6)
    assert measured.won / measured.count == pytest.approx(told["rewards/accuracies"])
    assert measured.accuracy == pytest.approx(told["mean_token_accuracy"])


def test_what_is_measured_is_of_pairs_and_of_preferred_tokens(
    engine: Engine, tiny_base_dir: Path, tmp_path: Path
) -> None:
    adapter = trained(engine)
    engine.export(adapter, tmp_path, "tiny")
    model, batch = peft_model(tiny_base_dir, tmp_path), pairs(4, 5)
    margins = dpo_margins(model, batch, BETA)
    plain = only(engine.evaluate([Work(adapter, batch[::2])]))
    measured = only(engine.evaluate([preferring(adapter, batch)]))
    assert (measured.count, measured.weight, measured.correct) == (5, labelled(batch[::2]), plain.correct)
    assert measured.margin == pytest.approx(float(margins.detach().sum()), rel=1e-5)
    assert measured.won == int((margins > 0).sum())
    assert 0 < measured.won < 5


def test_an_untouched_adapter_prefers_nothing(engine: Engine) -> None:
    measured = only(engine.evaluate([preferring(engine.create_adapter(settings()), pairs(4, 5), compared=True)]))
    assert measured.mean_loss == pytest.approx(math.log(2))
    assert (measured.margin, measured.won, measured.divergence) == (0, 0, 0)


@pytest.mark.parametrize("sick_preference", [True, False])
def test_a_job_that_is_not_finite_leaves_those_in_its_pass_bitwise_alone(engine: Engine, sick_preference: bool) -> None:
    ends = []
    for sick_now in (False, True):
        adapters = [engine.create_adapter(settings(seed=seed)) for seed in (3, 4, 5)]
        sick = adapters[0 if sick_preference else 2]
        for step in range(5):
            if sick_now:
                sick.bank.pair(sick.bank.values, sick.slot, 0)[1][:8] = math.nan
            works = [preferring(adapter, even_pairs(step + 10 * n)) for n, adapter in enumerate(adapters[:2])]
            outcomes = engine.forward_backward([*works, Work(adapters[2], equal_rows(step), 30.0)])
            assert [isinstance(o, NonFinite) for o in outcomes] == [sick_now and a is sick for a in adapters]
            engine.optim_step([(adapter, AdamParams(5e-3, max_grad_norm=1.0)) for adapter in adapters])
        ends.append([flat(adapter) for adapter in adapters if adapter is not sick])
        for adapter in adapters:
            engine.release(adapter)
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


@pytest.mark.parametrize("watched", [0, 1, 2])
def test_a_result_is_bitwise_the_same_beside_any_neighbours_of_equal_shapes(engine: Engine, watched: int) -> None:
    ends = []
    for data in (100, 200):
        seeds = [data + job if job != watched else job for job in range(3)]
        adapters = [engine.create_adapter(settings(seed=seed)) for seed in seeds]
        for step in range(5):
            batches = [1000 * seed + step for seed in seeds]
            works = [preferring(adapter, even_pairs(seed)) for adapter, seed in zip(adapters, batches, strict=True)]
            works[0] = Work(adapters[0], equal_rows(batches[0]), 30.0)
            for outcome in engine.forward_backward(works):
                only([outcome])
            engine.optim_step([(adapter, AdamParams(5e-3, max_grad_norm=1.0)) for adapter in adapters])
        ends.append(flat(adapters[watched]))
        for adapter in adapters:
            engine.release(adapter)
    assert torch.equal(*ends)


def test_the_reference_takes_no_slot_and_leaves_no_gradient(engine: Engine) -> None:
    adapter = trained(engine)
    bank = adapter.bank
    before = bank.values.clone()
    only(engine.forward_backward([preferring(adapter, pairs(1, 2))]))
    assert list(engine._banks) == [8]
    assert len(bank.values) == 1
    assert torch.equal(bank.values, before)
    assert bank.grads[adapter.slot].any()


def test_a_reference_in_a_pass_of_its_own_gives_the_same(engine: Engine) -> None:
    """What bases do that rearrange tokens; here it shows that rows over the base alone disturb no gradient."""
    adapter, batch = trained(engine), pairs(7, 3)
    grads: list[torch.Tensor] = []
    losses: list[Measured] = []
    for joined in (True, False):
        engine._passes._stepper.joined = joined
        losses.append(only(engine.forward_backward([preferring(adapter, batch)])))
        grads.append(adapter.bank.grads[adapter.slot].clone())
        adapter.bank.grads[adapter.slot].zero_()
    assert losses[1].loss == pytest.approx(losses[0].loss, rel=TOLERANCE)
    assert float((grads[0] - grads[1]).norm() / grads[0].norm()) < TOLERANCE


def test_a_base_that_rearranges_tokens_compares_with_itself_all_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.OPTConfig(**{**SHAPE, "ffn_dim": 96, "word_embed_proj_dim": 64})  # type: ignore[arg-type]
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    engine = load_engine(str(tmp_path / "base"), "cpu", threads=1)
    adapter = trained(engine)
    engine.export(adapter, tmp_path / "adapter", "tiny")
    model, batch = peft_model(tmp_path / "base", tmp_path / "adapter").eval(), pairs(3, 2)
    loss = dpo_loss(model, batch, BETA)
    (loss / 2).backward()
    assert only(engine.forward_backward([preferring(adapter, batch)])).loss == pytest.approx(loss.item(), rel=TOLERANCE)
    assert gradient_difference(engine, adapter, model) < TOLERANCE


def test_gradients_do_not_depend_on_the_token_budget(engine: Engine) -> None:
    adapter, batch = trained(engine), pairs(5, 4)
    found = []
    for budget in (4096, 400, 1):
        adapter.token_budget = budget
        measured = only(engine.forward_backward([preferring(adapter, batch)]))
        found.append((measured, adapter.bank.grads[adapter.slot].clone()))
        adapter.bank.grads[adapter.slot].zero_()
    for measured, grad in found[1:]:
        assert measured.loss == pytest.approx(found[0][0].loss, rel=TOLERANCE)
        assert measured.count == 4
        assert float((grad - found[0][1]).norm() / found[0][1].norm()) < TOLERANCE


def test_pairs_stay_together_and_what_the_base_sees_again_is_counted(engine: Engine) -> None:
    adapter, batch = engine.create_adapter(settings()), pairs(6, 9)
    engine.token_budget = 300
    whole = preferring(adapter, batch)
    pieces = engine.pieces(whole)
    assert len(pieces) > 1
    seen = [id(row) for piece in pieces for row in piece.rows]
    wanted = {id(chosen): id(rejected) for chosen, rejected in zip(batch[::2], batch[1::2], strict=True)}
    assert dict(zip(seen[::2], seen[1::2], strict=True)) == wanted
    for piece in pieces:
        width = bucket(max(len(row.input_ids) for row in piece.rows))
        assert engine.cost(piece) == 2 * len(piece.rows) * width <= 300
        assert (piece.normaliser, piece.objective) == (whole.normaliser, whole.objective)
    assert engine.cost(whole) == sum(engine.cost(piece) for piece in pieces)
    for piece in plan([Demand(batch, 9.0, 300, (8, 0), beta=0.1)], 300):
        assert piece.reference is not None
        assert piece.input_ids.numel() <= 300
        assert torch.equal(piece.input_ids[piece.shares[0].rows :], piece.input_ids[piece.reference.rows])


def test_too_little_memory_costs_passes_down_to_a_single_pair(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, batch = trained(engine), pairs(8, 4, longest=16)
    calm = only(engine.forward_backward([preferring(adapter, batch)]))
    tight = Tight(engine, 64)
    monkeypatch.setattr(engine._passes._stepper, "train", tight.train)
    measured = only(engine.forward_backward([preferring(adapter, batch)]))
    assert tight.passes[0] > 64 == tight.passes[-1]
    assert measured.loss == pytest.approx(calm.loss, rel=TOLERANCE)


def test_rows_that_are_no_pairs_are_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="pairs"):
        preferring(engine.create_adapter(settings()), pairs(1, 2)[:3])
