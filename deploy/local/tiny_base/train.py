"""Trains the tiny base model: ``python -m deploy.local.tiny_base.train``.

This module owns the model's shape, the optimisation and the files of the model
folder, and ends by asking the trained model questions it has not seen.  The text
comes from ``corpus`` and the tokens from ``markup``.  The number of steps is
fixed, so a seed gives the same model again on the same machine and thread count.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from deploy.local.tiny_base import MODEL_DIR, corpus
from deploy.local.tiny_base.markup import (
    CONTEXT,
    FIRST_BYTE,
    ID,
    UNSCORED,
    VOCABULARY,
    encode,
    save_tokenizer,
)
from deploy.local.tiny_base.wiring import wire

HEAD_SIZE = 32
THETA = 10_000.0
STEPS = 1800
WARMUP = 40
BATCH_TOKENS = 1500
POOL = 32
MATRIX_RATE = 3.5e-3
VECTOR_RATE = 4e-3
Encoded = tuple[list[int], list[int]]
Batch = tuple[torch.Tensor, torch.Tensor]


def config() -> LlamaConfig:
    """The model's shape: narrow enough for a CPU, with several heads for copying."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=HEAD_SIZE,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=ID["<|bos|>"],
        eos_token_id=ID["<|end|>"],
        pad_token_id=ID["<|pad|>"],
    )


def batches(seed: int, tokens: int) -> Iterator[Batch]:
    """Batches of about so many tokens each, of dialogues of similar length."""
    source = map(encode, corpus.dialogues(seed))
    order = random.Random(f"tiny-base order {seed}")
    while True:
        pool: list[Encoded] = []
        while sum(len(ids) for ids, _ in pool) < tokens * POOL:
            pool.extend(next(source) for _ in range(100))
        pool.sort(key=lambda pair: len(pair[0]))
        ready: list[Batch] = []
        group: list[Encoded] = []
        for pair in pool:
            if group and len(pair[0]) * (len(group) + 1) > tokens:
                ready.append(collate(group))
                group = []
            group.append(pair)
        order.shuffle(ready)
        yield from ready


def collate(group: list[Encoded]) -> Batch:
    """Ids and labels, padded on the right, where causal attention never looks."""
    width = max(len(ids) for ids, _ in group)
    ids = torch.full((len(group), width), ID["<|pad|>"])
    labels = torch.full((len(group), width), UNSCORED)
    for row, (said, scored) in enumerate(group):
        ids[row, : len(said)] = torch.tensor(said)
        labels[row, : len(said)] = torch.tensor(scored)
    return ids, labels


def optimisers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices, which learn to copy much sooner with it; AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=VECTOR_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def pace(step: int, steps: int) -> float:
    """The learning rate's factor: a short warmup, then linearly down to nothing."""
    return min(1.0, (step + 1) / WARMUP) * min(1.0, (steps - step) / (0.9 * steps))


def fit(model: LlamaForCausalLM, steps: int, seed: int, tokens: int = BATCH_TOKENS) -> None:
    """Train in place, printing the loss as it goes."""
    chosen = optimisers(model)
    rates = [optimiser.param_groups[0]["lr"] for optimiser in chosen]
    started, recent = time.monotonic(), 0.0
    model.train()
    for step, (ids, labels) in zip(range(steps), batches(seed, tokens), strict=False):
        for optimiser, rate in zip(chosen, rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * pace(step, steps)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in chosen:
            optimiser.step()
            optimiser.zero_grad()
        recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
        if step % 50 == 49:
            spent = time.monotonic() - started
            print(f"step {step + 1}/{steps}  loss {recent:.3f}  {spent:.0f} s", flush=True)


@torch.no_grad()
def answer(model: LlamaForCausalLM, prompt: list[int], longest: int = 96) -> str:
    """The greedy answer to a prompt of ids, without its end-of-turn token."""
    ids = list(prompt)
    for _ in range(longest):
        chosen = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if chosen < FIRST_BYTE:
            break
        ids.append(chosen)
    return bytes(token - FIRST_BYTE for token in ids[len(prompt) :]).decode(errors="replace")


def accuracy(model: LlamaForCausalLM, make: Callable[[random.Random], corpus.Dialogue], count: int) -> float:
    """The share of last answers of unseen dialogues that come out exactly right."""
    model.eval()
    rng = random.Random("tiny-base accuracy")
    right = 0
    for _ in range(count):
        asked = make(rng)
        *before, last = asked.turns
        ids, _ = encode(corpus.Dialogue((*before, corpus.Turn(last.question, "")), asked.system))
        # The empty answer's end token is dropped: the model is to write from there.
        right += answer(model, ids[:-1]) == last.answer
    return right / count


def table(model: LlamaForCausalLM, count: int = 40) -> None:
    """Print the accuracy of every skill on text that was not trained on."""
    for skill, _ in corpus.SINGLE:
        share = accuracy(model, lambda rng, skill=skill: corpus.Dialogue((skill(rng),)), count)
        print(f"{skill.__name__:>10} {share:6.1%}", flush=True)
    for kind in (corpus.fixed, corpus.shown, corpus.formatted):
        print(f"{kind.__name__:>10} {accuracy(model, kind, count):6.1%}", flush=True)


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write everything that loading the model needs, weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.generation_config = GenerationConfig(
        bos_token_id=ID["<|bos|>"],
        eos_token_id=[ID["<|end|>"], ID["<|eos|>"]],
        pad_token_id=ID["<|pad|>"],
    )
    model.save_pretrained(folder)
    save_tokenizer(folder)


def main() -> None:
    """Train, save and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(config())
    wire(model, HEAD_SIZE, THETA, options.seed)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters")
    fit(model, options.steps, options.seed)
    save(model, options.out)
    table(model)


if __name__ == "__main__":
    main()
