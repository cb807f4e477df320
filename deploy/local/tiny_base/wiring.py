"""The starting weights of the tiny base model: attention heads that are ready to copy.

This module owns the initialisation only.  From random weights most of a short
training is spent on finding, letter by letter, what every copying model ends up
with: heads that look one, two or three letters back, and heads in the next layer
that look for an earlier place with the same letters before it.  Starting from
rough versions of both leaves the minutes on two cores for the tasks themselves.
Everything stays an ordinary weight that ``train`` goes on to change.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

# Sizes of the starting weights, found by watching how soon the loss falls.
CONSTANT = 4.0
EMBEDDING = 0.5
SHARPNESS = 1.2
FAST_PAIRS = 6
SLOW = 0.03
WRITE = 1.5
MATCH = 1.3
COPY = 1.0
CALM = 0.25


def rotation(width: int, random: torch.Generator) -> Tensor:
    """A random orthonormal matrix."""
    return torch.linalg.qr(torch.randn(width, width, generator=random))[0]


def frequencies(size: int, theta: float) -> Tensor:
    """The rotary angle per position of each pair of a head's coordinates."""
    half = size // 2
    return theta ** (-torch.arange(half) / half)


def projections(model: LlamaForCausalLM, layer: int) -> dict[str, Tensor]:
    """The weights of a layer's attention: ``q``, ``k``, ``v`` and ``o``."""
    return {kind: model.get_parameter(f"model.layers.{layer}.self_attn.{kind}_proj.weight") for kind in "qkvo"}


def look_back(angles: Tensor, distance: int) -> Tensor:
    """A query whose product with the one of distance 0 peaks so many positions back."""
    turn = angles * -distance
    wave = torch.stack([turn.cos(), turn.sin()]) * SHARPNESS
    wave[:, FAST_PAIRS:] = 0
    return wave.flatten()


@torch.no_grad()
def wire(model: LlamaForCausalLM, head_size: int, theta: float, seed: int) -> None:
    """Set the embedding and the first two layers' attention up for copying, in place."""
    random = torch.Generator().manual_seed(seed)
    embedding = model.get_parameter("model.embed_tokens.weight")
    embedding.normal_(0, EMBEDDING, generator=random)
    # One coordinate is the same for every token, so that a head can have a fixed query.
    embedding[:, 0] = CONSTANT
    # The same embedding is the output layer, where these sizes would be overconfident.
    model.get_parameter("model.norm.weight").fill_(CALM)
    width = embedding.shape[1]
    # Every head shows the letter it sees in the same terms, in a place of its own.
    read = rotation(width, random)[:head_size]
    read[:, 0] = 0
    writes = rotation(width, random)
    angles = frequencies(head_size, theta)
    first, second = projections(model, 0), projections(model, 1)
    for head in range(width // head_size):
        rows = slice(head * head_size, (head + 1) * head_size)
        first["q"][rows, 0] = look_back(angles, head + 1)
        first["k"][rows, 0] = look_back(angles, 0)
        first["v"][rows] = read
        first["o"][:, rows] = WRITE * writes[rows].T
    match(second, angles, read, writes)
    mix = rotation(width, random)
    second["v"].copy_(mix)
    second["o"].copy_(COPY * mix.T)


def match(layer: dict[str, Tensor], angles: Tensor, read: Tensor, writes: Tensor) -> None:
    """Let a layer's heads look for places that follow the same letters as the current one."""
    size = len(read)
    # Only coordinates that hardly turn with the position can compare letters far apart.
    slow = [dim for dim in range(size) if angles[dim % len(angles)] < SLOW]
    for head in range(len(writes) // size):
        depth = 1 + head % 3
        for place, dim in enumerate(slow):
            ago, part = place % depth, (place // depth + 8 * head) % size
            seen = read[part] if ago == 0 else writes[(ago - 1) * size + part]
            # The letter `ago` before the query is the one `ago + 1` before what it copies.
            layer["q"][head * size + dim] = MATCH * seen
            layer["k"][head * size + dim] = MATCH * writes[ago * size + part]
