"""Step plans: a job's rows as padded tensors, cut into micro-batches by a token budget.

Owns shapes and labels. A row belongs to one job. Rows are padded on the right, where causal attention never looks, so
no mask is needed and attention may use its fused causal kernel. Weights stay as the data gives them; the loss divides
by the labelled tokens of the job's whole optimizer batch, so no cut changes the gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One example: token ids and one loss weight a token."""

    input_ids: np.ndarray
    weights: np.ndarray

    @property
    def labelled(self) -> float:
        return float(self.weights.sum(dtype=np.float64))

    @property
    def trained_tokens(self) -> int:
        return int(np.count_nonzero(self.weights))


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass. `positions` are those that predict a labelled token in any row; logits are made only there."""

    input_ids: Tensor
    position_ids: Tensor
    positions: Tensor
    labelled: Tensor
    """Indices into the flattened [rows, positions] of the tokens that count."""
    targets: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(*(part.to(device, non_blocking=True) for part in vars(self).values()))


def bucket(length: int) -> int:
    """The padded length: few distinct shapes, little padding."""
    for limit, grain in ((128, 16), (512, 64), (2048, 256)):
        if length <= limit:
            return -(-length // grain) * grain
    return -(-length // 1024) * 1024


def plan(rows: Sequence[Row], token_budget: int) -> list[MicroBatch]:
    """Longest rows first, as many as fit `token_budget` padded tokens, at least one."""
    ordered = sorted(rows, key=lambda row: -len(row.input_ids))
    cut: list[MicroBatch] = []
    while ordered:
        take = max(1, token_budget // bucket(len(ordered[0].input_ids)))
        cut.append(_pad(ordered[:take]))
        ordered = ordered[take:]
    return cut


def _pad(rows: Sequence[Row]) -> MicroBatch:
    width = bucket(max(len(row.input_ids) for row in rows))
    ids = np.zeros((len(rows), width), dtype=np.int64)
    weights = np.zeros((len(rows), width), dtype=np.float32)
    for number, row in enumerate(rows):
        ids[number, : len(row.input_ids)] = row.input_ids
        weights[number, : len(row.weights)] = row.weights
    # The logits at one position predict the token after it.
    targets, weights = ids[:, 1:], weights[:, 1:]
    positions = np.flatnonzero(weights.any(axis=0))
    targets, weights = targets[:, positions].ravel(), weights[:, positions].ravel()
    labelled = np.flatnonzero(weights)
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.arange(width).expand(len(rows), width),
        positions=torch.from_numpy(positions),
        labelled=torch.from_numpy(labelled),
        targets=torch.from_numpy(targets[labelled]),
        weights=torch.from_numpy(weights[labelled]),
    )
