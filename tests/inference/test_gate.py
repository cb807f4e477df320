"""What the gate lets through, and for each way an adapter can be hostile, that it does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from inference.gate import AdapterGate, layers_of_base
from inference.problems import AdapterError
from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tests.inference.conftest import HIDDEN, INNER, Adapter, Tensors, lora, lora_tensors, pack

Change = Callable[[Tensors], Tensors]
FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


def judge(gate: AdapterGate, adapter: Adapter, folder: Path) -> None:
    gate.check_manifest(adapter.manifest)
    gate.check_files(adapter.write(folder), adapter.manifest)


def refusal(gate: AdapterGate, adapter: Adapter, folder: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        judge(gate, adapter, folder)
    assert caught.value.problem == "adapter_invalid"
    assert caught.value.status == 422
    return caught.value.message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [1, 16])
def test_sound_adapter_passes(gate: AdapterGate, tmp_path: Path, dtype: torch.dtype, rank: int) -> None:
    tensors = {name: value.to(dtype) for name, value in lora_tensors(1, rank).items()}
    judge(gate, lora(1, rank, tensors), tmp_path)


def test_adapter_of_one_layer_passes(gate: AdapterGate, tmp_path: Path) -> None:
    judge(gate, lora(1, tensors={name: value for name, value in lora_tensors(1).items() if FIRST in name}), tmp_path)


def is_down(name: str) -> bool:
    return ".lora_A." in name


HOSTILE_TENSORS: dict[str, tuple[Change, str]] = {
    "nan": (lambda t: {n: v if is_down(n) else torch.full_like(v, torch.nan) for n, v in t.items()}, "not finite"),
    "one infinity": (lambda t: {n: v.index_fill(0, torch.tensor([0]), torch.inf) for n, v in t.items()}, "not finite"),
    "huge values": (lambda t: {n: v * 1e6 for n, v in t.items()}, "exceed"),
    "half width": (lambda t: {n: v[:, : v.shape[1] // 2] if is_down(n) else v for n, v in t.items()}, "shapes"),
    "double width": (lambda t: {n: torch.cat([v, v], 1) if is_down(n) else v for n, v in t.items()}, "shapes"),
    "rank lie": (lambda t: {n: torch.cat([v, v], 0 if is_down(n) else 1) for n, v in t.items()}, "shapes"),
    "missing partner": (lambda t: {n: v for n, v in t.items() if is_down(n)}, "only one"),
    "layer of no base": (
        lambda t: {**t, "base_model.model.model.layers.99.evil.lora_A.weight": torch.zeros(4, HIDDEN)},
        "no linear layer",
    ),
    "base weight": (lambda t: {**t, f"{FIRST}.weight": torch.zeros(HIDDEN, HIDDEN)}, "unknown tensor"),
    "magnitude vector": (lambda t: {**t, f"{FIRST}.lora_magnitude_vector": torch.ones(HIDDEN)}, "unknown tensor"),
    "integers": (lambda t: {n: v.to(torch.int32) for n, v in t.items()}, "I32"),
    "doubles": (lambda t: {n: v.double() for n, v in t.items()}, "F64"),
    "three dimensions": (lambda t: {n: v[None] for n, v in t.items()}, "shapes"),
}


@pytest.mark.parametrize("kind", HOSTILE_TENSORS)
def test_hostile_tensors_are_refused(gate: AdapterGate, tmp_path: Path, kind: str) -> None:
    change, reason = HOSTILE_TENSORS[kind]
    assert reason in refusal(gate, lora(1, tensors=change(lora_tensors(1))), tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"lora_alpha": 1e38},
        {"lora_alpha": 4 * 64 + 1},
        {"use_dora": True},
        {"use_dora": 1},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"peft_type": "IA3"},
        {"rank_pattern": {"(a+)+$": 4}},
        {"alpha_pattern": {"q_proj": 1e38}},
        {"layer_replication": [[0, 2]]},
        {"init_lora_weights": "pissa"},
        {"fan_in_fan_out": True},
        {"alora_invocation_tokens": [1]},
    ],
)
def test_configuration_that_changes_the_meaning_is_refused(
    gate: AdapterGate, tmp_path: Path, config: dict[str, Any]
) -> None:
    refusal(gate, lora(1, **config), tmp_path)


def test_square_root_scale_is_bounded_too(gate: AdapterGate, tmp_path: Path) -> None:
    assert "scales" in refusal(gate, lora(1, use_rslora=True, lora_alpha=130), tmp_path)
    judge(gate, lora(1, use_rslora=True, lora_alpha=128), tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"r": "4"}', b'{"r": true, "lora_alpha": 1}']
)
def test_unreadable_configuration_is_refused(gate: AdapterGate, tmp_path: Path, content: bytes) -> None:
    refusal(gate, pack({**lora(1).files, ADAPTER_CONFIG: content}), tmp_path)


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"\x80\x04pickle",
        b"\xff" * 64,
        (1 << 40).to_bytes(8, "little") + b"{}",
        lora(1).files[ADAPTER_WEIGHTS][:-4],
    ],
)
def test_file_that_is_no_safetensors_is_refused(gate: AdapterGate, tmp_path: Path, weights: bytes) -> None:
    assert "safetensors" in refusal(gate, pack({**lora(1).files, ADAPTER_WEIGHTS: weights}), tmp_path)


def test_empty_adapter_is_refused(gate: AdapterGate, tmp_path: Path) -> None:
    empty = len(b"{}      ").to_bytes(8, "little") + b"{}      "
    assert "no tensors" in refusal(gate, pack({**lora(1).files, ADAPTER_WEIGHTS: empty}), tmp_path)


def test_manifest_must_agree_with_the_configuration(gate: AdapterGate, tmp_path: Path) -> None:
    assert "disagree" in refusal(gate, pack(lora(1, rank=8, lora_alpha=8.0).files, rank=4), tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"base_fingerprint": "e" * 64}, "another build"), ({"rank": 32}, "exceeds")],
)
def test_manifest_for_another_replica_is_refused(
    gate: AdapterGate, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(gate, pack(lora(1).files, **changes), tmp_path)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "run.py", "tokenizer.pkl"])
def test_file_that_could_be_executed_is_refused_before_it_is_fetched(gate: AdapterGate, name: str) -> None:
    with pytest.raises(AdapterError, match="no place"):
        gate.check_manifest(pack({**lora(1).files, name: b"x"}).manifest)


@pytest.mark.parametrize("name", [ADAPTER_CONFIG, ADAPTER_WEIGHTS])
def test_incomplete_manifest_is_refused(gate: AdapterGate, name: str) -> None:
    with pytest.raises(AdapterError, match="missing"):
        gate.check_manifest(pack({key: value for key, value in lora(1).files.items() if key != name}).manifest)


def test_layers_come_from_the_bases_configuration(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=300,
        architectures=["LlamaForCausalLM"],
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    layers = layers_of_base(str(tmp_path))
    assert layers["model.layers.1.mlp.down_proj"] == (HIDDEN, INNER)
    assert layers["model.layers.0.self_attn.k_proj"] == (HIDDEN // 2, HIDDEN)
    assert layers["lm_head"] == (300, HIDDEN)
    assert len(layers) == 2 * 7 + 1
