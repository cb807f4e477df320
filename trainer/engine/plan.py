"""Step plans: rows of many jobs as padded tensors, cut into micro-batches by token budgets.

Owns shapes, labels and which jobs share a pass. A row belongs to one job. Rows are padded on the right, where causal
attention never looks, so no mask is needed and attention may use its fused causal kernel. Each row's gradient is
weighted by its job's own normaliser, so neither a cut nor a neighbour changes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PASS_TOKENS = 64
"""What a further pass costs, in padded tokens: jobs of unlike lengths share one where padding costs less than that."""


@dataclass(frozen=True)
class Row:
    """One example, or several packed: token ids and one loss weight a token."""

    input_ids: np.ndarray
    weights: np.ndarray
    starts: tuple[int, ...] = (0,)
    """Where each example begins. None sees a token of another."""

    @property
    def labelled(self) -> float:
        return float(self.weights.sum(dtype=np.float64))

    @property
    def trained_tokens(self) -> int:
        return int(np.count_nonzero(self.weights))


@dataclass(frozen=True)
class Demand:
    """One job's rows, to be planned. `order` keeps jobs that can share a product side by side."""

    rows: Sequence[Row]
    normaliser: float
    token_budget: int
    order: tuple[int, int]


@dataclass(frozen=True)
class Share:
    """The part of a micro-batch that belongs to one demand: so many rows, after those of the shares before it."""

    demand: int
    rows: int


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass. Logits are made at `positions` only; short rows repeat one of theirs with weight 0."""

    input_ids: Tensor
    positions: Tensor
    """Of the tokens before the labelled ones, [rows, most labels of a row]."""
    targets: Tensor
    weights: Tensor
    factors: Tensor
    """Weights over the job's normaliser: what each token's loss counts in the gradient."""
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class _Chunk:
    """Rows of one demand that go into one pass."""

    demand: int
    rows: list[Row]
    width: int
    limit: int
    """Padded tokens that a pass with this chunk may have."""


def bucket(length: int) -> int:
    """The padded length: few distinct shapes, little padding."""
    for limit, grain in ((64, 8), (128, 16), (512, 64), (2048, 256)):
        if length <= limit:
            return -(-length // grain) * grain
    return -(-length // 1024) * 1024


def cut(rows: Sequence[Row], token_budget: int) -> list[list[Row]]:
    """Longest rows first, as many as fit `token_budget` padded tokens, at least one."""
    ordered = sorted(rows, key=lambda row: -len(row.input_ids))
    parts: list[list[Row]] = []
    while ordered:
        take = max(1, token_budget // bucket(len(ordered[0].input_ids)))
        parts.append(ordered[:take])
        ordered = ordered[take:]
    return parts


def padded_tokens(rows: Sequence[Row]) -> int:
    return len(rows) * bucket(max(len(row.input_ids) for row in rows))


def plan(demands: Sequence[Demand], shared_budget: int) -> list[MicroBatch]:
    """Every row once. Jobs share a pass of up to `shared_budget` padded tokens; what is larger goes by itself.

    How a job's own rows are cut does not depend on its neighbours.
    """
    chunks = [
        _Chunk(number, part, bucket(len(part[0].input_ids)), min(shared_budget, demand.token_budget))
        for number, demand in enumerate(demands)
        for part in cut(demand.rows, demand.token_budget)
    ]
    chunks.sort(key=lambda chunk: -chunk.width)
    passes: list[list[_Chunk]] = []
    for chunk in chunks:
        if not (passes and _fits(chunk, passes[-1])):
            passes.append([])
        passes[-1].append(chunk)
    return [_pad(demands, chunks) for chunks in passes]


def _fits(chunk: _Chunk, others: list[_Chunk]) -> bool:
    width, rows = others[0].width, sum(len(other.rows) for other in others)
    padding = sum((width - part.width) * len(part.rows) for part in (*others, chunk))
    limit = min(part.limit for part in (*others, chunk))
    return padding <= PASS_TOKENS and (rows + len(chunk.rows)) * width <= limit


def _pad(demands: Sequence[Demand], chunks: list[_Chunk]) -> MicroBatch:
    # The same rank class, then as many rows, then slots in order: runs of jobs that one batched product serves.
    orders = [demands[chunk.demand].order for chunk in chunks]
    width = chunks[0].width
    chunks = [
        chunk
        for _, chunk in sorted(zip(orders, chunks, strict=True), key=lambda it: (it[0][0], len(it[1].rows), it[0][1]))
    ]
    rows = [row for chunk in chunks for row in chunk.rows]
    normalisers = [demands[chunk.demand].normaliser for chunk in chunks for _ in chunk.rows]
    # The logits at one position predict the token after it.
    places = [np.flatnonzero(row.weights[1:]) for row in rows]
    most = bucket(max(1, *(len(at) for at in places)))
    ids = np.zeros((len(rows), width), dtype=np.int64)
    positions, targets = np.zeros((2, len(rows), most), dtype=np.int64)
    weights = np.zeros((len(rows), most), dtype=np.float32)
    for number, (row, at) in enumerate(zip(rows, places, strict=True)):
        ids[number, : len(row.input_ids)] = row.input_ids
        positions[number] = at[0] if len(at) else 0
        positions[number, : len(at)] = at
        targets[number, : len(at)] = row.input_ids[at + 1]
        weights[number, : len(at)] = row.weights[at + 1]
    factors = weights / np.array(normalisers, dtype=np.float32)[:, None]
    tensors = map(torch.from_numpy, (ids, positions, targets, weights, factors))
    return MicroBatch(*tensors, shares=tuple(Share(chunk.demand, len(chunk.rows)) for chunk in chunks))
