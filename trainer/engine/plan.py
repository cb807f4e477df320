"""Step plans: rows of many jobs as padded tensors, cut into micro-batches by token budgets.

Owns shapes, labels and which jobs share a pass. A row belongs to one job. Rows are padded on the right, where causal
attention never looks, so no mask is needed and attention may use its fused causal kernel; packed rows, which need one,
have passes of their own. Each row's gradient is weighted by its job's own normaliser, so neither a cut nor a neighbour
changes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PASS_TOKENS = 64
"""What a further pass costs, in padded tokens: jobs of unlike lengths share one where padding costs less."""


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

    @property
    def packed(self) -> bool:
        return len(self.starts) > 1

    def examples(self) -> list["Row"]:
        """Each in a row of its own."""
        ends = (*self.starts[1:], len(self.input_ids))
        parts = [slice(start, end) for start, end in zip(self.starts, ends, strict=True)]
        return [Row(self.input_ids[part], self.weights[part]) for part in parts]


@dataclass(frozen=True)
class Demand:
    """One job's rows, to be planned. `order` keeps jobs that can share a product side by side."""

    rows: Sequence[Row]
    normaliser: float
    token_budget: int
    order: tuple[int, int]
    beta: float | None = None
    """Where rows are pairs, preferred and then not: what their difference is scaled by."""
    compared: bool = False
    """Whether the distance to the base is to be measured."""

    @property
    def unit(self) -> int:
        """Rows that always share a pass."""
        return 1 if self.beta is None else 2

    @property
    def copies(self) -> int:
        """How often a pass holds each row: once more for the base alone where something is compared with it."""
        return 1 if self.beta is None and not self.compared else 2


@dataclass(frozen=True)
class Share:
    """The part of a micro-batch that belongs to one demand: so many rows, after those of the shares before it."""

    demand: int
    rows: int


@dataclass(frozen=True)
class Reference:
    """What a pass computes over the base alone, and for what. Numbers are those of the jobs' rows."""

    rows: Tensor
    """The rows that come once more, after all jobs' rows; ascending."""
    preferred: Tensor
    """Of each pair. The other row is the next one."""
    betas: Tensor
    """Of each pair."""
    compared: Tensor
    """The rows whose distance from the base is measured; of a pair, the preferred one."""

    def to(self, device: torch.device) -> "Reference":
        return Reference(*(tensor.to(device) for tensor in vars(self).values()))


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass. Logits are made at `positions` only; short rows repeat one of theirs with weight 0.

    The first three cover the rows over the base alone too.
    """

    input_ids: Tensor
    position_ids: Tensor
    """Of the tokens in their examples: where they begin anew, so does attention."""
    positions: Tensor
    """Of the tokens before the labelled ones, [rows, most labels of a row]."""
    targets: Tensor
    weights: Tensor
    factors: Tensor
    """Weights over the job's normaliser: what each token's loss, or the pair's, counts in the gradient."""
    shares: tuple[Share, ...]
    reference: Reference | None
    divisible: bool
    """Whether a smaller pass would still hold something."""


@dataclass(frozen=True)
class _Chunk:
    """Rows of one demand that go into one pass."""

    number: int
    demand: Demand
    rows: list[Row]
    width: int
    packed: bool
    limit: int
    """Padded tokens that a pass with this chunk may have."""

    @property
    def height(self) -> int:
        return len(self.rows) * self.demand.copies


def bucket(length: int) -> int:
    """The padded length: few distinct shapes, little padding."""
    for limit, grain in ((64, 8), (128, 16), (512, 64), (2048, 256)):
        if length <= limit:
            return -(-length // grain) * grain
    return -(-length // 1024) * 1024


def cut(rows: Sequence[Row], token_budget: int, unit: int = 1, copies: int = 1) -> list[list[Row]]:
    """Longest rows first, as many as fit `token_budget` padded tokens, at least one unit. Packed rows go apart."""
    units = [rows[start : start + unit] for start in range(0, len(rows), unit)]
    parts: list[list[Row]] = []
    for packed in (False, True):
        ordered = sorted((rows for rows in units if _packed(rows) == packed), key=lambda rows: -_longest(rows))
        while ordered:
            take = max(1, token_budget // (bucket(_longest(ordered[0])) * unit * copies))
            parts.append([row for rows in ordered[:take] for row in rows])
            ordered = ordered[take:]
    return parts


def padded_tokens(rows: Sequence[Row], copies: int) -> int:
    return len(rows) * copies * bucket(_longest(rows))


def plan(demands: Sequence[Demand], shared_budget: int) -> list[MicroBatch]:
    """Every row once. Jobs share a pass of up to `shared_budget` padded tokens; what is larger goes by itself.

    How a job's own rows are cut does not depend on its neighbours.
    """
    chunks = [
        _Chunk(
            number, demand, part, bucket(_longest(part)), _packed(part), limit=min(shared_budget, demand.token_budget)
        )
        for number, demand in enumerate(demands)
        for part in cut(demand.rows, demand.token_budget, demand.unit, demand.copies)
    ]
    chunks.sort(key=lambda chunk: (chunk.packed, -chunk.width))
    return [_batch(shared) for shared in _passes(chunks)]


def _longest(rows: Sequence[Row]) -> int:
    return max(len(row.input_ids) for row in rows)


def _packed(rows: Sequence[Row]) -> bool:
    return any(row.packed for row in rows)


def _passes(chunks: Sequence[_Chunk]) -> list[Sequence[_Chunk]]:
    """Neighbours in width share a pass so that all passes together cost least: padded tokens, and PASS_TOKENS each."""
    costs, firsts = [0], [0]
    """Of the cheapest passes for so many chunks: what they cost, and which chunk the last one begins with."""
    for stop in range(1, len(chunks) + 1):
        height, limit = 0, chunks[stop - 1].limit
        found: list[tuple[int, int]] = []
        for first in range(stop - 1, -1, -1):
            chunk = chunks[first]
            height, limit = height + chunk.height, min(limit, chunk.limit)
            # A mask for packed rows would choose another kernel, and so other bits, for the rest.
            alike = chunk.packed == chunks[stop - 1].packed
            if found and not (alike and height * chunk.width <= limit):
                break
            found.append((costs[first] + height * chunk.width + PASS_TOKENS, first))
        cost, first = min(found)
        costs.append(cost)
        firsts.append(first)
    passes: list[Sequence[_Chunk]] = []
    stop = len(chunks)
    while stop:
        passes.append(chunks[firsts[stop] : stop])
        stop = firsts[stop]
    return passes[::-1]


def _batch(chunks: Sequence[_Chunk]) -> MicroBatch:
    # The same rank class, then as many rows, then slots in order: runs of jobs that one batched product serves.
    width = chunks[0].width
    chunks = sorted(chunks, key=lambda it: (it.demand.order[0], len(it.rows), it.demand.order[1]))
    rows = [row for chunk in chunks for row in chunk.rows]
    ids, position_ids = np.zeros((2, len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row.input_ids)] = row.input_ids
        for start in row.starts:
            position_ids[number, start:] = np.arange(width - start)
    positions, targets, weights = _labels(rows)
    normalisers = [chunk.demand.normaliser for chunk in chunks for _ in chunk.rows]
    factors = weights / np.array(normalisers, dtype=np.float32)[:, None]
    reference = _reference(chunks)
    if reference is not None:
        again = np.concatenate((np.arange(len(rows)), reference.rows.numpy()))
        ids, position_ids, positions = ids[again], position_ids[again], positions[again]
    return MicroBatch(
        *map(torch.from_numpy, (ids, position_ids, positions, targets, weights, factors)),
        shares=tuple(Share(chunk.number, len(chunk.rows)) for chunk in chunks),
        reference=reference,
        divisible=len(rows) > chunks[0].demand.unit,
    )


def _labels(rows: list[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, targets and weights. The logits at one position predict the token after it."""
    places = [_predicting(row) for row in rows]
    most = bucket(max(1, *(len(at) for at in places)))
    positions, targets = np.zeros((2, len(rows), most), dtype=np.int64)
    weights = np.zeros((len(rows), most), dtype=np.float32)
    for number, (row, at) in enumerate(zip(rows, places, strict=True)):
        positions[number] = at[0] if len(at) else 0
        positions[number, : len(at)] = at
        targets[number, : len(at)] = row.input_ids[at + 1]
        weights[number, : len(at)] = row.weights[at + 1]
    return positions, targets, weights


def _predicting(row: Row) -> np.ndarray:
    """Where the next token is labelled. Nothing predicts an example's first."""
    labelled = row.weights != 0
    if row.packed:
        labelled[list(row.starts)] = False
    return np.flatnonzero(labelled[1:])


def _reference(chunks: list[_Chunk]) -> Reference | None:
    again: list[int] = []
    preferred: list[int] = []
    betas: list[float] = []
    compared: list[int] = []
    start = 0
    for chunk in chunks:
        demand, rows = chunk.demand, range(start, start + len(chunk.rows))
        start = rows.stop
        if demand.copies > 1:
            again += rows
        if demand.beta is not None:
            preferred += rows[::2]
            betas += [demand.beta] * (len(rows) // 2)
        if demand.compared:
            compared += rows[:: demand.unit]
    if not again:
        return None
    places = [torch.tensor(numbers, dtype=torch.long) for numbers in (again, preferred, compared)]
    return Reference(places[0], places[1], torch.tensor(betas), places[2])
