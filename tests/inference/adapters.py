"""Adapters made by hand for a base of two small blocks: sound ones, and the means to make any other."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterManifest, ManifestFile, adapter_id_of

FINGERPRINT = "f" * 64
TEMPLATE = "a" * 64
HIDDEN, INNER, BLOCKS = 64, 128, 2
LAYERS = {
    f"model.layers.{block}.{name}": shape
    for block in range(BLOCKS)
    for name, shape in {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.v_proj": (HIDDEN, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }.items()
}

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Adapter:
    manifest: AdapterManifest
    files: dict[str, bytes]

    @property
    def id(self) -> str:
        return adapter_id_of(self.manifest)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder


def lora_tensors(seed: int, rank: int = 4, scale: float = 0.3) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for module, (features_out, features_in) in LAYERS.items():
        name = f"base_model.model.{module}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, features_in, generator=generator) * scale
        tensors[f"{name}.lora_B.weight"] = torch.randn(features_out, rank, generator=generator) * scale
    return tensors


def lora_config(rank: int = 4, **changes: Any) -> dict[str, Any]:
    plain = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "bias": "none",
        "use_dora": False,
    }
    return plain | changes


def pack(files: dict[str, bytes], *, seed: int = 0, rank: int = 4, alpha: float = 8.0, **changes: Any) -> Adapter:
    """An adapter whose manifest states exactly these files."""
    listed = tuple(
        ManifestFile(path=name, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        for name, content in files.items()
    )
    manifest = AdapterManifest(
        base_model="base",
        base_fingerprint=FINGERPRINT,
        chat_template_sha256=None,
        rank=rank,
        alpha=alpha,
        target_modules=("q_proj", "v_proj", "down_proj"),
        job_id=f"ftjob-{seed}",
        step=1,
        files=listed,
    )
    return Adapter(manifest.model_copy(update=changes), files)


def lora(seed: int, rank: int = 4, tensors: Tensors | None = None, **config: Any) -> Adapter:
    settings = lora_config(rank, **config)
    weights = save({name: value.contiguous() for name, value in (tensors or lora_tensors(seed, rank)).items()})
    files = {ADAPTER_CONFIG: json.dumps(settings).encode(), ADAPTER_WEIGHTS: weights}
    return pack(files, seed=seed, rank=rank, alpha=float(settings["lora_alpha"]))
