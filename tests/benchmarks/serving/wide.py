"""A base on which an adapter has a realistic size, over 80 MB, though the base itself starts in seconds anywhere."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import LlamaConfig, LlamaForCausalLM

from deploy.local import tiny_base
from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS

RANK = 256
HIDDEN, INNER, LAYERS = 256, 704, 16


def write_base(folder: Path) -> Path:
    """Random weights under the tiny base's tokenizer."""
    torch.manual_seed(0)
    known = json.loads((tiny_base.MODEL_DIR / "config.json").read_text())
    config = LlamaConfig(
        vocab_size=known["vocab_size"],
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        **{name: known[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    for path in tiny_base.MODEL_DIR.iterdir():
        if path.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(path, folder)
    return folder


def adapter(seed: int) -> dict[str, bytes]:
    random = torch.Generator().manual_seed(seed)
    shapes = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (HIDDEN, HIDDEN))
    names = {f"self_attn.{name}": shape for name, shape in shapes.items()}
    names |= {f"mlp.{name}": (INNER, HIDDEN) for name in ("gate_proj", "up_proj")} | {"mlp.down_proj": (HIDDEN, INNER)}
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(LAYERS):
        for name, (out, into) in names.items():
            place = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(RANK, into, generator=random) * 0.01
            tensors[f"{place}.lora_B.weight"] = torch.randn(out, RANK, generator=random) * 0.01
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": sorted(name.partition(".")[2] for name in names),
        "bias": "none",
    }
    return {ADAPTER_CONFIG: json.dumps(settings).encode(), ADAPTER_WEIGHTS: save(tensors)}
