"""Slots: where resident adapters, their gradients and their optimizer moments live.

A bank holds all slots of one rank class, stacked: for each wrapped module A[slots, in, R] and B[slots, R, out], float32
masters. One slot is one row of four flat tensors, so that clipping, AdamW, saving and zeroing touch a single range and
can touch no other slot's. Ranks below the class are padded with zeros, which is exact: a padded column has no gradient.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

RANK_CLASSES = (8, 16, 32, 64)
ALIGNMENT = 16
"""Floats. Every view in every slot starts on a 64-byte line: kernels that choose by alignment choose alike in each."""

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ModuleShape:
    """One wrapped module of the base."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class SlotViews:
    """One slot as autograd sees it: leaves over the slot's own memory, whose gradients land in the slot."""

    pairs: tuple[Pair | None, ...]
    """A [in, R] and B [R, out] for each wrapped module; None where this adapter does not train the module."""
    scale: float


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
        self._views: dict[int, SlotViews] = {}

    def allocate(self, scale: float, trained: tuple[bool, ...]) -> int:
        """A zeroed slot for an adapter that trains those of the wrapped modules."""
        if all(self._taken):
            self._grow(max(1, 2 * len(self._taken)))
        slot = self._taken.index(False)
        self._taken[slot] = True
        self._trained[slot], self._scales[slot] = trained, scale
        return slot

    def release(self, slot: int) -> None:
        """Forgets everything the slot held: weights, gradients and moments."""
        for rows in (self.values, self.grads, self.exp_avg, self.exp_avg_sq):
            rows[slot].zero_()
        self._taken[slot] = False
        for table in (self._trained, self._scales, self._views):
            table.pop(slot, None)
        if not any(self._taken):
            self._clear()

    def stacked(self, module: int) -> Pair:
        """A[slots, in, R] and B[slots, R, out] of one module over all slots."""
        return self._pair(self.values, module)

    def pair(self, rows: Tensor, slot: int, module: int) -> Pair:
        """One slot's part of `rows`, one of the four flat tensors, for one module."""
        left, right = self._pair(rows, module)
        return left[slot], right[slot]

    def views(self, slot: int) -> SlotViews:
        if slot not in self._views:
            pairs = tuple(
                self._leaves(slot, module) if trained else None for module, trained in enumerate(self._trained[slot])
            )
            self._views[slot] = SlotViews(pairs, self._scales[slot])
        return self._views[slot]

    def _leaves(self, slot: int, module: int) -> Pair:
        def leaf(value: Tensor, grad: Tensor) -> Tensor:
            parameter = value.detach().requires_grad_()
            parameter.grad = grad  # autograd adds to it in place, so gradients land in the slot
            return parameter

        values, grads = self.pair(self.values, slot, module), self.pair(self.grads, slot, module)
        return leaf(values[0], grads[0]), leaf(values[1], grads[1])

    def _pair(self, rows: Tensor, module: int) -> Pair:
        shape, (start, middle, _) = self._modules[module], self._ranges[module]
        left = rows[:, start : start + shape.inputs * self.rank]
        right = rows[:, middle : middle + self.rank * shape.outputs]
        return left.unflatten(1, (shape.inputs, self.rank)), right.unflatten(1, (self.rank, shape.outputs))

    def _grow(self, slots: int) -> None:
        grown = [self._rows(slots) for _ in range(4)]
        used = len(self._taken)
        for rows, old in zip(grown, (self.values, self.grads, self.exp_avg, self.exp_avg_sq), strict=True):
            rows[:used] = old
        self.values, self.grads, self.exp_avg, self.exp_avg_sq = grown
        self._taken += [False] * (slots - used)
        self._views.clear()

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
