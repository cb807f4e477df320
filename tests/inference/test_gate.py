"""What the gate lets through, and for each way an adapter can be hostile, that it does not."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig

from inference.gate import AdapterGate, layers_of_base
from inference.problems import AdapterError
from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ManifestFile
from tests.inference.adapters import HIDDEN, INNER, Adapter, lora, lora_tensors
from tests.inference.hostile import FIRST, HOSTILE


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


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_adapter_is_refused_with_its_reason(gate: AdapterGate, tmp_path: Path, kind: str) -> None:
    make, reason = HOSTILE[kind]
    assert reason in refusal(gate, make(), tmp_path)


def test_there_are_many_hostile_ones() -> None:
    assert len(HOSTILE) >= 30


def test_square_root_scale_has_the_same_bound(gate: AdapterGate, tmp_path: Path) -> None:
    judge(gate, lora(1, use_rslora=True, lora_alpha=128), tmp_path)


@pytest.mark.parametrize("name", [ADAPTER_CONFIG, ADAPTER_WEIGHTS])
def test_link_is_refused(gate: AdapterGate, tmp_path: Path, name: str) -> None:
    adapter = lora(1)
    folder = adapter.write(tmp_path / "adapter")
    elsewhere = (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(AdapterError, match="plain file"):
        gate.check_files(folder, adapter.manifest)


@pytest.mark.parametrize("path", ["../evil", "/etc/passwd", ".hidden", "a/b", "a" * 200, "", "x\x00"])
def test_path_outside_the_folder_is_no_manifest(path: str) -> None:
    with pytest.raises(ValidationError):
        ManifestFile(path=path, sha256="0" * 64, size=1)


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
    assert "lm_head" not in layers
    assert len(layers) == 2 * 7
