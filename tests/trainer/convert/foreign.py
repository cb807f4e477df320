"""Adapters as people make them elsewhere: plain PEFT over a small base, with weights that change what it says."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    DeloraConfig,
    GraloraConfig,
    LoraConfig,
    MissConfig,
    PeftModel,
    PsoftConfig,
    TinyLoraConfig,
    UniLoraConfig,
    VBLoRAConfig,
    VeraConfig,
    get_peft_model,
)
from peft.config import PeftConfig
from torch import Tensor
from transformers import AutoModelForCausalLM

from service.contracts.manifest import ADAPTER_CONFIG
from trainer.convert.importing import import_adapter
from trainer.protocol import Import, Imported

TARGETS = ["q_proj", "v_proj", "down_proj"]
TOKENS = torch.randint(4, 384, (2, 24), generator=torch.Generator().manual_seed(3))

CONVERTED: dict[str, PeftConfig] = {
    "VERA": VeraConfig(r=8, target_modules=TARGETS),
    "MISS": MissConfig(r=8, target_modules=TARGETS),
    "DELORA": DeloraConfig(r=8, target_modules=TARGETS),
    "GRALORA": GraloraConfig(r=8, gralora_k=2, target_modules=TARGETS),
    "VBLORA": VBLoRAConfig(r=4, num_vectors=32, vector_length=32, topk=2, target_modules=TARGETS),
    "UNILORA": UniLoraConfig(r=4, theta_d_length=256, target_modules=TARGETS),
    "TINYLORA": TinyLoraConfig(r=2, u=8, target_modules=TARGETS),
    "PSOFT": PsoftConfig(r=8, target_modules=TARGETS),
}


def adalora() -> AdaLoraConfig:
    return AdaLoraConfig(init_r=8, target_r=4, lora_alpha=16, total_step=100, target_modules=TARGETS)


def base_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=TOKENS).logits


def made(folder: Path, base: Path, config: PeftConfig) -> Tensor:
    """Saves an adapter with random weights; gives the logits of the base with it."""
    torch.manual_seed(5)
    model = get_peft_model(base_of(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return logits(model.eval())


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **options})


def imported(source: Path, base: Path, out: Path, max_rank: int = 64) -> Imported:
    """Raises trainer.convert.refusal.Refused."""
    return import_adapter(
        str(base), Import(source_dir=str(source), out_dir=str(out), base_model="weft-tiny", max_rank=max_rank)
    )


def with_it(base: Path, adapter: Path) -> Tensor:
    """Logits of the base with an adapter that plain PEFT loads."""
    return logits(PeftModel.from_pretrained(base_of(base), adapter).eval())


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / ADAPTER_CONFIG).read_bytes())


def edit(folder: Path, **changes: Any) -> None:
    (folder / ADAPTER_CONFIG).write_text(json.dumps({**config_of(folder), **changes}))
