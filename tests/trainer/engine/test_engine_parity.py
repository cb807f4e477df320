"""The engine against PEFT and torch alone: same gradients, same losses over twenty steps, same logits after export."""

import math
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from tests.trainer.engine.conftest import evaluate, forward_backward, labelled, optim_step, rows, settings, train_step
from tests.trainer.tiny import write_base
from trainer.engine.adapter import Adapter
from trainer.engine.base import load_engine
from trainer.engine.engine import Engine
from trainer.engine.optimizer import AdamParams, learning_rate
from trainer.engine.plan import Row, cut
from trainer.engine.wrap import UnknownTarget, recompute_layers

ATTENTION = ("q_proj", "v_proj")
STEPS = 20
SHAPE = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SHAPE |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "initializer_range": 0.15}
SHAPE |= {"bos_token_id": None, "eos_token_id": 2}
TOLERANCE = 2e-6


def peft_model(base: Path, adapter: Path) -> PeftModel:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter), is_trainable=True)


def peft_losses(model: torch.nn.Module, batch: list[Row]) -> torch.Tensor:
    """The weighted loss sum, one unpadded row at a time."""
    total = torch.zeros(())
    for row in batch:
        ids = torch.from_numpy(row.input_ids).long()[None]
        losses = cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
        total = total + (losses * torch.from_numpy(row.weights)[1:]).sum()
    return total


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradient_difference(engine: Engine, adapter: Adapter, model: torch.nn.Module) -> float:
    """Largest difference over all modules, relative to the gradient's own norm."""
    reference, worst = trainable(model), 0.0
    norm = math.sqrt(sum(float(p.grad.norm()) ** 2 for p in reference.values() if p.grad is not None))
    for number, shape in enumerate(engine.modules):
        if not adapter.trained[number]:
            continue
        rank = adapter.settings.rank
        left, right = adapter.bank.pair(adapter.bank.grads, adapter.slot, number)
        assert not left[:, rank:].any()
        assert not right[rank:].any()
        for name, ours in (("lora_A", left[:, :rank]), ("lora_B", right[:rank])):
            theirs = reference[f"base_model.model.{shape.name}.{name}.default.weight"].grad
            assert theirs is not None
            worst = max(worst, float((ours.T - theirs).norm()) / norm)
    return worst


KINDS = pytest.mark.parametrize(
    ("rank", "targets"), [(8, "all-linear"), (12, "all-linear"), (1, ATTENTION), (64, ("mlp.up_proj", "o_proj"))]
)


@KINDS
def test_gradients_are_those_of_peft(
    engine: Engine, tiny_base_dir: Path, tmp_path: Path, rank: int, targets: str | tuple[str, ...]
) -> None:
    adapter = engine.create_adapter(settings(rank, targets=targets))
    for step in range(5):
        train_step(engine, adapter, rows(step, 3))
    engine.export(adapter, tmp_path / "trained", "tiny")
    model = peft_model(tiny_base_dir, tmp_path / "trained")
    batch = rows(50, 4)
    (peft_losses(model, batch) / labelled(batch)).backward()
    forward_backward(engine, adapter, batch, labelled(batch))
    assert gradient_difference(engine, adapter, model) < TOLERANCE


@KINDS
def test_twenty_steps_are_those_of_peft(
    engine: Engine, tiny_base_dir: Path, tmp_path: Path, rank: int, targets: str | tuple[str, ...]
) -> None:
    adapter = engine.create_adapter(settings(rank, targets=targets))
    engine.export(adapter, tmp_path / "start", "tiny")
    model = peft_model(tiny_base_dir, tmp_path / "start")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.01)
    for step in range(STEPS):
        batch, rate = rows(step, 3), learning_rate(5e-3, step, STEPS, 0.1, "cosine")
        n = labelled(batch)
        optimizer.zero_grad()
        expected = peft_losses(model, batch) / n
        expected.backward()
        measured = forward_backward(engine, adapter, batch, n)
        assert measured.mean_loss == pytest.approx(expected.item(), rel=TOLERANCE)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optim_step(engine, adapter, AdamParams(rate, weight_decay=0.01, max_grad_norm=1.0))


def test_all_linear_means_what_it_means_to_peft(engine: Engine, tiny_base_dir: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_base_dir),
        LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    theirs = {name.split("base_model.model.")[1].split(".lora_A")[0] for name in trainable(model) if "lora_A" in name}
    assert {shape.name for shape in engine.modules} == theirs


def test_the_start_has_pefts_distribution_and_depends_on_seed_and_module_alone(engine: Engine) -> None:
    first, same, other = (engine.create_adapter(settings(seed=seed)) for seed in (1, 1, 2))
    weights = [engine.save(adapter)[0] for adapter in (first, same, other)]
    for shape in engine.modules:
        left = weights[0][f"{shape.name}.A"]
        assert torch.equal(left, weights[1][f"{shape.name}.A"])
        assert not torch.equal(left, weights[2][f"{shape.name}.A"])
        assert not weights[0][f"{shape.name}.B"].any()
        bound = 1 / math.sqrt(shape.inputs)
        assert left.abs().max() <= bound
        assert float(left.std()) == pytest.approx(bound / math.sqrt(3), rel=0.15)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_an_exported_adapter_gives_the_engines_logits_in_peft(
    tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    base = write_base(tmp_path / "base", dtype)
    engine = load_engine(str(base), "cpu", threads=1)
    adapter = engine.create_adapter(settings(12))
    for step in range(8):
        batch = rows(step, 2)
        forward_backward(engine, adapter, batch, labelled(batch))
        optim_step(engine, adapter, AdamParams(1e-2))
    engine.export(adapter, tmp_path / "adapter", "tiny")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    batch = rows(99, 4)
    with torch.no_grad():
        theirs = float(peft_losses(model, batch))
        with model.disable_adapter():
            untrained = float(peft_losses(model, batch))
    ours = evaluate(engine, adapter, batch).loss
    assert ours == pytest.approx(theirs, rel=tolerance)
    assert abs(theirs - untrained) > 10 * abs(ours - theirs)


ARCHITECTURES = {
    "fused qkv and gate_up": ("Phi3Config", {}),
    "fused qkv, biases": ("GPTNeoXConfig", {}),
    "soft-capped logits, sliding window": (
        "Gemma2Config",
        {"head_dim": 16, "final_logit_softcapping": 5.0, "sliding_window": 16},
    ),
    "learned positions, dropout": ("OPTConfig", {"ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.1}),
    "experts": ("MixtralConfig", {"num_local_experts": 2}),
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_other_architectures_train_as_under_peft(tmp_path: Path, kind: str) -> None:
    name, more = ARCHITECTURES[kind]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**SHAPE, **more})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    engine = load_engine(str(tmp_path / "base"), "cpu", threads=1)
    adapter = engine.create_adapter(settings(12))
    for step in range(4):
        train_step(engine, adapter, rows(step, 3))
    engine.export(adapter, tmp_path / "adapter", "tiny")
    model = peft_model(tmp_path / "base", tmp_path / "adapter").eval()
    batch = rows(50, 4)
    expected = peft_losses(model, batch)
    (expected / labelled(batch)).backward()
    measured = forward_backward(engine, adapter, batch, labelled(batch))
    assert measured.loss == pytest.approx(expected.item(), rel=TOLERANCE)
    assert gradient_difference(engine, adapter, model) < TOLERANCE


def test_a_base_without_linear_layers_is_refused_at_once(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=384)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="no linear layer"):
        load_engine(str(tmp_path / "base"), "cpu", threads=1)


def test_half_precision_trains_float32_masters(tiny_base_dir: Path) -> None:
    """What an accelerator runs: the base and the products in bfloat16, weights and moments of adapters in float32."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base_dir, dtype=torch.bfloat16)
    half = Engine(model, torch.bfloat16, 4096, 512, recompute=True)
    full = load_engine(str(tiny_base_dir), "cpu", threads=1)
    ends = []
    for engine in (half, full):
        adapter = engine.create_adapter(settings())
        losses = [train_step(engine, adapter, rows(1, 3), rate=1e-2).mean_loss for _ in range(STEPS)]
        assert adapter.bank.values.dtype == adapter.bank.grads.dtype == torch.float32
        ends.append(losses)
    assert ends[0][0] == pytest.approx(ends[1][0], rel=0.02)
    assert ends[0][-1] == pytest.approx(ends[1][-1], rel=0.1)
    assert ends[0][-1] < ends[0][0] * 0.8


def test_recomputed_activations_give_the_same_gradients(tiny_base_dir: Path) -> None:
    engines = [load_engine(str(tiny_base_dir), "cpu", threads=1) for _ in range(2)]
    recompute_layers(engines[1]._passes._stepper._model)
    grads = []
    for engine in engines:
        adapter = engine.create_adapter(settings())
        for step in range(3):
            batch = rows(step, 2)
            forward_backward(engine, adapter, batch, labelled(batch))
            if step < 2:
                optim_step(engine, adapter, AdamParams(1e-2))
        grads.append(adapter.bank.grads[adapter.slot].clone())
    assert grads[0].any()
    assert torch.equal(grads[0], grads[1])


def test_gradients_do_not_depend_on_the_token_budget(engine: Engine) -> None:
    batch = rows(5, 7)
    grads = []
    for budget in (4096, 128, 1):
        adapter = engine.create_adapter(settings(seed=3))
        # B is zero at the start and hides A's gradient.
        for number, trained in enumerate(adapter.trained):
            assert trained
            adapter.bank.pair(adapter.bank.values, adapter.slot, number)[1].fill_(0.01)
        adapter.token_budget = budget
        measured = forward_backward(engine, adapter, batch, labelled(batch))
        grads.append((measured.loss, adapter.bank.grads[adapter.slot].clone()))
    assert len(cut(batch, 1)) == 7 > len(cut(batch, 4096))
    for loss, grad in grads[1:]:
        assert loss == pytest.approx(grads[0][0], rel=1e-6)
        assert float((grad - grads[0][1]).norm() / grads[0][1].norm()) < TOLERANCE


def test_parts_of_a_batch_add_up_to_the_whole(engine: Engine) -> None:
    batch = rows(6, 6)
    whole, parts = (engine.create_adapter(settings(seed=3)) for _ in range(2))
    forward_backward(engine, whole, batch, labelled(batch))
    for part in (batch[:1], batch[1:4], batch[4:]):
        forward_backward(engine, parts, part, labelled(batch))
    one, other = whole.bank.grads[whole.slot], parts.bank.grads[parts.slot]
    assert float((one - other).norm() / one.norm()) < TOLERANCE


def test_a_target_that_names_nothing_is_refused(engine: Engine) -> None:
    with pytest.raises(UnknownTarget, match="lm_head"):
        engine.create_adapter(settings(targets=("q_proj", "lm_head")))
    with pytest.raises(UnknownTarget, match="proj"):
        engine.create_adapter(settings(targets=("proj",)))


@pytest.mark.parametrize(("shape", "last"), [("linear", 0.1), ("cosine", 0.0245), ("constant", 1.0)])
def test_the_learning_rate_is_a_function_of_the_step(shape: str, last: float) -> None:
    rates = [learning_rate(1.0, step, 12, 0.15, shape) for step in range(12)]  # type: ignore[arg-type]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(last, rel=0.01)
    assert learning_rate(1.0, 0, 1, 1.0, shape) == 1.0  # type: ignore[arg-type]
