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
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

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


def frequencies(config: LlamaConfig) -> Tensor:
    """The rotary angle per position of each pair of a head's coordinates."""
    half = config.head_dim // 2
    theta: float = config.rope_parameters["rope_theta"]
    return theta ** (-torch.arange(half) / half)


def look_back(angles: Tensor, distance: int) -> Tensor:
    """A query whose product with the one of distance 0 peaks so many positions back."""
    turn = angles * -distance
    wave = torch.stack([turn.cos(), turn.sin()]) * SHARPNESS
    wave[:, FAST_PAIRS:] = 0
    return wave.flatten()


@torch.no_grad()
def wire(model: LlamaForCausalLM, seed: int) -> None:
    """Set the embedding and the first two layers' attention up for copying, in place."""
    random = torch.Generator().manual_seed(seed)
    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, EMBEDDING, generator=random)
    # One coordinate is the same for every token, so that a head can have a fixed query.
    embedding[:, 0] = CONSTANT
    # The same embedding is the output layer, where these sizes would be overconfident.
    model.model.norm.weight.fill_(CALM)
    size, width = model.config.head_dim, model.config.hidden_size
    # Every head shows the letter it sees in the same terms, in a place of its own.
    read = rotation(width, random)[:size]
    read[:, 0] = 0
    writes = rotation(width, random)
    angles = frequencies(model.config)
    first = model.model.layers[0].self_attn
    for head in range(model.config.num_attention_heads):
        rows = slice(head * size, (head + 1) * size)
        first.q_proj.weight[rows, 0] = look_back(angles, head + 1)
        first.k_proj.weight[rows, 0] = look_back(angles, 0)
        first.v_proj.weight[rows] = read
        first.o_proj.weight[:, rows] = WRITE * writes[rows].T
    second = model.model.layers[1].self_attn
    match(second, angles, read, writes)
    mix = rotation(width, random)
    second.v_proj.weight.copy_(mix)
    second.o_proj.weight.copy_(COPY * mix.T)


def match(attention: LlamaAttention, angles: Tensor, read: Tensor, writes: Tensor) -> None:
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
            attention.q_proj.weight[head * size + dim] = MATCH * seen
            attention.k_proj.weight[head * size + dim] = MATCH * writes[ago * size + part]
