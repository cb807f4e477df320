"""One job's optimizer step over its own slot: clip, learning rate, AdamW.

Owns the arithmetic. Works on flat ranges of one slot, with the job's own step count, so no other slot can be touched.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.optim.adamw import adamw

from trainer.engine.slots import SlotBank


@dataclass(frozen=True)
class AdamParams:
    """Settings of one optimizer step."""

    learning_rate: float
    weight_decay: float = 0.0
    max_grad_norm: float = math.inf
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


def learning_rate(
    peak: float, step: int, total: int, warmup_ratio: float, shape: Literal["linear", "cosine", "constant"]
) -> float:
    """The rate of optimizer step `step`, counted from 0: a function of the step alone, so resuming needs no state.

    Warmup ends at `peak` and its first step already moves; the last step of a decay is small but not zero.
    """
    warmup = math.ceil(total * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if shape == "linear":
        return peak * (1 - progress)
    if shape == "cosine":
        return peak * (1 + math.cos(math.pi * progress)) / 2
    return peak


def gradient_norms(slots: Sequence[tuple[SlotBank, int]]) -> list[float]:
    """Of each slot by itself; not finite if any gradient of the slot is not. Waits for the device once."""
    if not slots:
        return []
    return torch.stack([torch.linalg.vector_norm(bank.grads[slot]) for bank, slot in slots]).tolist()


@torch.no_grad()
def adamw_step(bank: SlotBank, slot: int, steps_done: int, norm: float, params: AdamParams) -> None:
    """Clips to `max_grad_norm` given the gradient's `norm`, updates the slot, and leaves its gradient at zero."""
    grads = bank.grads[slot]
    # Divided by inside the update: clipping by itself would be a pass over the slot's memory more.
    clip = (norm + 1e-6) / params.max_grad_norm if norm > params.max_grad_norm else 1.0
    adamw(
        [bank.values[slot]],
        [grads],
        [bank.exp_avg[slot]],
        [bank.exp_avg_sq[slot]],
        [],
        [torch.tensor(float(steps_done), device=grads.device)],
        fused=True,
        grad_scale=torch.tensor(clip, device=grads.device) if clip != 1.0 else None,
        amsgrad=False,
        beta1=params.beta1,
        beta2=params.beta2,
        lr=params.learning_rate,
        weight_decay=params.weight_decay,
        eps=params.eps,
        maximize=False,
    )
    grads.zero_()
