"""Slots: where resident adapters, their gradients and their optimizer moments live.

A bank holds all slots of one rank class, stacked: for each wrapped module A[slots, in, R] and B[slots, R, out], float32
masters. A lies in memory as [R, in]: products with few columns are several times slower. One slot is one row of four
flat tensors, so that clipping, AdamW, saving and zeroing touch a single range and can touch no other slot's. Ranks
below the class are padded with zeros, which is exact: a padded column has no gradient.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

RANK_CLASSES = (8, 16, 32, 64)
ALIGNMENT = 16
"""Floats. Every view in every slot starts on a 64-byte line: kernels that choose by alignment choose alike in each."""

MOST_SPANS = 64
"""Of a bank, kept for the next pass: which jobs sit side by side changes seldom, and making views takes its time."""

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ModuleShape:
    """One wrapped module of the base."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class SpanModule:
    """One module over neighbouring slots: A [slots, R, in], B [slots, R, out] and where their gradients gather."""

    a: Tensor
    b: Tensor
    grad_a: Tensor
    grad_b: Tensor


@dataclass(frozen=True)
class Span:
    """Neighbouring slots as one pass sees them: views of the bank's own memory."""

    count: int
    modules: tuple[SpanModule | None, ...]
    """None where no adapter of these trains the module. One that does not among some that do has zeros there."""
    scale: Tensor
    """[slots, 1, 1]"""


def rank_class(rank: int) -> int:
    return next(size for size in RANK_CLASSES if size >= rank)


class SlotBank:
    """The slots of one rank class. Grows by doubling, and gives all memory back when its last slot is released."""

    def __init__(self, rank: int, modules: tuple[ModuleShape, ...], device: torch.device) -> None:
        self.rank = rank
        self._modules = modules
        self._device = device
        self._ranges: list[tuple[int, int, int]] = []
        end = 0
        for shape in modules:
            middle = _aligned(end + shape.inputs * rank)
            self._ranges.append((end, middle, _aligned(middle + rank * shape.outputs)))
            end = self._ranges[-1][2]
        self._size = end
        self._clear()

    def _clear(self) -> None:
        self.values, self.grads, self.exp_avg, self.exp_avg_sq = (self._rows(0) for _ in range(4))
        self._taken: list[bool] = []
        self._trained: dict[int, tuple[bool, ...]] = {}
        self._scales: dict[int, float] = {}
        self._spans: dict[tuple[int, int], Span] = {}

    def allocate(self, scale: float, trained: tuple[bool, ...]) -> int:
        """A zeroed slot for an adapter that trains those of the wrapped modules."""
        if all(self._taken):
            self._grow(max(1, 2 * len(self._taken)))
        slot = self._taken.index(False)
        self._taken[slot] = True
        self._trained[slot], self._scales[slot] = trained, scale
        self._spans.clear()
        return slot

    def release(self, slot: int) -> None:
        """Forgets everything the slot held: weights, gradients and moments."""
        for rows in (self.values, self.grads, self.exp_avg, self.exp_avg_sq):
            rows[slot].zero_()
        self._taken[slot] = False
        del self._trained[slot], self._scales[slot]
        self._spans.clear()
        if not any(self._taken):
            self._clear()

    def pair(self, rows: Tensor, slot: int, module: int) -> Pair:
        """One slot's part of `rows`, one of the four flat tensors, for one module."""
        left, right = self._pair(rows, module)
        return left[slot], right[slot]

    def span(self, first: int, count: int) -> Span:
        """Slots `first` and after, all of them taken."""
        if (first, count) not in self._spans:
            if len(self._spans) == MOST_SPANS:
                self._spans.clear()
            slots = range(first, first + count)
            modules = tuple(
                self._span_module(slots, number) if any(self._trained[slot][number] for slot in slots) else None
                for number in range(len(self._modules))
            )
            scale = torch.tensor([self._scales[slot] for slot in slots], device=self._device)
            self._spans[first, count] = Span(count, modules, scale.view(count, 1, 1))
        return self._spans[first, count]

    def _span_module(self, slots: range, module: int) -> SpanModule:
        left, right = self._pair(self.values[slots.start : slots.stop], module)
        grad_left, grad_right = self._pair(self.grads[slots.start : slots.stop], module)
        return SpanModule(left.mT, right, grad_left.mT, grad_right)

    def _pair(self, rows: Tensor, module: int) -> Pair:
        shape, (start, middle, _) = self._modules[module], self._ranges[module]
        left = rows[:, start : start + shape.inputs * self.rank]
        right = rows[:, middle : middle + self.rank * shape.outputs]
        return left.unflatten(1, (self.rank, shape.inputs)).mT, right.unflatten(1, (self.rank, shape.outputs))

    def _grow(self, slots: int) -> None:
        grown = [self._rows(slots) for _ in range(4)]
        used = len(self._taken)
        for rows, old in zip(grown, (self.values, self.grads, self.exp_avg, self.exp_avg_sq), strict=True):
            rows[:used] = old
        self.values, self.grads, self.exp_avg, self.exp_avg_sq = grown
        self._taken += [False] * (slots - used)
        self._spans.clear()

    def _rows(self, slots: int) -> Tensor:
        return torch.zeros(slots, self._size, device=self._device)


def initial_a(seed: int, shape: ModuleShape, rank: int) -> Tensor:
    """A's start, [in, rank]: PEFT's kaiming_uniform(a=√5), drawn from the job's seed and the module's name alone."""
    generator = torch.Generator().manual_seed(_seed_of(seed, shape.name))
    bound = 1 / math.sqrt(shape.inputs)
    return torch.empty(rank, shape.inputs).uniform_(-bound, bound, generator=generator).T


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def _aligned(floats: int) -> int:
    return -(-floats // ALIGNMENT) * ALIGNMENT
