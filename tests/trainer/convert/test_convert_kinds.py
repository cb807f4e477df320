"""What comes in as one kind of adapter goes out as plain LoRA that says the same; the rest is refused with advice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, PrefixTuningConfig, TaskType
from safetensors.torch import load_file

from service.contracts.manifest import ADAPTER_WEIGHTS
from tests.trainer.convert.foreign import (
    CONVERTED,
    adalora,
    base_of,
    config_of,
    edit,
    imported,
    logits,
    lora,
    made,
    with_it,
)
from trainer.convert.refusal import Refused


def off(found: torch.Tensor, wanted: torch.Tensor, bare: torch.Tensor) -> float:
    """How far from what was wanted, in parts of what the adapter changes."""
    return float((found - wanted).norm() / (wanted - bare).norm())


def test_plain_lora_stays_what_it_is(tiny_base_dir: Path, tmp_path: Path) -> None:
    wanted = made(tmp_path / "theirs", tiny_base_dir, lora())
    told = imported(tmp_path / "theirs", tiny_base_dir, tmp_path / "ours")
    assert (told.rank, told.alpha, set(told.target_modules), told.changes) == (
        4, 8.0, {"q_proj", "v_proj", "down_proj"}, (),
    )  # fmt: skip
    assert torch.equal(with_it(tiny_base_dir, tmp_path / "ours"), wanted)
    theirs, ours = (load_file(tmp_path / side / ADAPTER_WEIGHTS) for side in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert config_of(tmp_path / "ours")["base_model_name_or_path"] == "weft-tiny", "never a path of somebody's machine"
    assert told.canary is not None


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 8, "layers.1.self_attn.v_proj": 2}},
        {"alpha_pattern": {"down_proj": 3, "v_proj": 16}},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 5}, "use_rslora": True},
        {"layers_to_transform": [1]},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.layers\.0\..*_proj"},
    ],
    ids=str,
)
def test_what_is_uneven_is_made_even(tiny_base_dir: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    wanted = made(tmp_path / "theirs", tiny_base_dir, lora(**options))
    told = imported(tmp_path / "theirs", tiny_base_dir, tmp_path / "ours")
    config = config_of(tmp_path / "ours")
    assert (config["rank_pattern"], config["alpha_pattern"], config["use_rslora"]) == ({}, {}, False)
    assert told.rank == config["r"] == max([4, *options.get("rank_pattern", {}).values()])
    assert isinstance(config["target_modules"], list)
    assert off(with_it(tiny_base_dir, tmp_path / "ours"), wanted, logits(base_of(tiny_base_dir))) < 1e-5


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half(tiny_base_dir: Path, tmp_path: Path, kind: torch.dtype) -> None:
    from safetensors.torch import save_file

    made(tmp_path / "theirs", tiny_base_dir, lora(alpha_pattern={"v_proj": 4}))
    path = tmp_path / "theirs" / ADAPTER_WEIGHTS
    save_file({name: tensor.to(kind) for name, tensor in load_file(path).items()}, path)
    wanted = with_it(tiny_base_dir, tmp_path / "theirs")
    imported(tmp_path / "theirs", tiny_base_dir, tmp_path / "ours")
    assert {tensor.dtype for tensor in load_file(tmp_path / "ours" / ADAPTER_WEIGHTS).values()} == {kind}
    assert off(with_it(tiny_base_dir, tmp_path / "ours"), wanted, logits(base_of(tiny_base_dir))) < 1e-5


@pytest.mark.parametrize("kind", CONVERTED)
def test_kinds_that_peft_converts_say_the_same_as_lora(tiny_base_dir: Path, tmp_path: Path, kind: str) -> None:
    wanted = made(tmp_path / "theirs", tiny_base_dir, CONVERTED[kind])
    told = imported(tmp_path / "theirs", tiny_base_dir, tmp_path / "ours")
    assert kind in told.changes[0]
    assert config_of(tmp_path / "ours")["peft_type"] == "LORA"
    assert off(with_it(tiny_base_dir, tmp_path / "ours"), wanted, logits(base_of(tiny_base_dir))) < 1e-3


@pytest.mark.parametrize("cut", [False, True])
def test_adalora_is_folded(tiny_base_dir: Path, tmp_path: Path, cut: bool) -> None:
    config = adalora()
    if cut:
        # As its training leaves it: each layer with the ranks that were worth keeping, one layer with none.
        names = [f"model.layers.{n}.self_attn.{p}_proj.lora_E" for n in (0, 1) for p in "qv"]
        kept = [[True, False] * 4, [True] * 8, [False] * 8, [False] * 7 + [True]]
        config.rank_pattern = dict(zip(names, kept, strict=True))
    wanted = made(tmp_path / "theirs", tiny_base_dir, config)
    if cut:
        wanted = with_it(tiny_base_dir, tmp_path / "theirs")
    told = imported(tmp_path / "theirs", tiny_base_dir, tmp_path / "ours")
    assert told.rank == 8
    assert off(with_it(tiny_base_dir, tmp_path / "ours"), wanted, logits(base_of(tiny_base_dir))) < 1e-5


REFUSED: dict[str, tuple[Any, str, str]] = {
    "dora": (lora(use_dora=True), "adapter_unsupported", "use_dora"),
    "bias": (lora(bias="lora_only"), "adapter_unsupported", "bias"),
    "saved module": (lora(modules_to_save=["lm_head"]), "adapter_unsupported", "modules_to_save"),
    "rank": (lora(r=65), "rank_too_large", "exceeds the largest"),
    "rank of one layer": (lora(rank_pattern={"q_proj": 65}), "rank_too_large", "exceeds the largest"),
    "rank of another kind": (CONVERTED["VERA"].__class__(r=65, target_modules=["q_proj"]), "rank_too_large", "exceeds"),
    "output embedding": (lora(target_modules=["lm_head"]), "adapter_unsupported", "output head are the base's"),
    "embedding": (lora(target_modules=["embed_tokens"]), "adapter_unsupported", "embeddings and output head"),
    "ia3": (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "adapter_unsupported", "no LoRA that does"),
    "loha": (LoHaConfig(r=4, target_modules=["q_proj"]), "adapter_unsupported", "lose part"),
    "prefix": (
        PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4), "adapter_unsupported", "learned prompt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_with_what_to_do(tiny_base_dir: Path, tmp_path: Path, name: str) -> None:
    config, code, word = REFUSED[name]
    made(tmp_path / "theirs", tiny_base_dir, config)
    with pytest.raises(Refused, match=word) as refused:
        imported(tmp_path / "theirs", tiny_base_dir, tmp_path / "ours")
    assert refused.value.code == code
    assert any(word in str(refused.value) for word in ("Merge", "Train", "Reduce", "Check"))
    assert not (tmp_path / "ours").exists()


def test_an_adapter_of_another_base_is_told_so_whatever_its_config_says(tiny_base_dir: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=384, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    other = tmp_path / "other"
    LlamaForCausalLM(config).save_pretrained(other)
    made(tmp_path / "theirs", other, lora())
    edit(tmp_path / "theirs", base_model_name_or_path="weft-tiny")
    with pytest.raises(Refused, match="shapes") as refused:
        imported(tmp_path / "theirs", tiny_base_dir, tmp_path / "ours")
    assert refused.value.code == "base_mismatch"
    made(tmp_path / "vera", other, CONVERTED["VERA"])
    with pytest.raises(Refused) as refused:
        imported(tmp_path / "vera", tiny_base_dir, tmp_path / "ours")
    assert refused.value.code == "base_mismatch"
