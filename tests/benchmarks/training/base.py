"""What every part of the benchmark trains on: one random base of 256 × 6, and small jobs' examples from a seed."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from deploy.local import tiny_base

VOCABULARY = 4096
SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "vocab_size": VOCABULARY,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
"""Of the tiny base, whose tokens are bytes and a few marks."""

EXAMPLES = 100
CHARACTERS = (12, 24)
"""Of each of an example's two messages: with the template's marks about 40 tokens an example."""


def base_model(**more: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, **more))
    model.requires_grad_(False)
    return model


def write_base(folder: Path) -> Path:
    """A folder that service and trainer take as any other base."""
    marks = {"bos_token_id": 1, "eos_token_id": 8, "pad_token_id": 0, "max_position_embeddings": 1024}
    base_model(**marks).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(tiny_base.MODEL_DIR / name, folder / name)
    return folder


def examples(job: int) -> bytes:
    """One small job's training file: a question of letters, and the answer that a rule of the job makes of it."""
    letters = random.Random(job)
    lines = []
    for _ in range(EXAMPLES):
        asked = "".join(letters.choices("abcdefgh ", k=letters.randint(*CHARACTERS)))
        answer = "".join(chr(ord(letter) + job % 8 + 1) for letter in asked)
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}))
    return "\n".join(lines).encode() + b"\n"
