"""A LoRA adapter as it leaves this package: one rank, one alpha, a pair of factors for each layer it changes.

Owns what makes it uniform. Layers of lesser rank are padded with zeros and layers of another scale have it moved into
B, both without changing what the adapter computes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from service.contracts.servable import MAX_ABSOLUTE, MAX_SCALE, MAX_TARGETS
from trainer.convert.base import Layers
from trainer.convert.refusal import refuse
from trainer.export import AdapterFacts, target_modules, write_adapter


@dataclass(frozen=True)
class Pair:
    """Of one layer: its output changes by `scale` · up · down · input."""

    down: Tensor
    up: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True)
class Plain:
    rank: int
    alpha: float
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    """(down, up) by module, all of them of `rank`."""
    changes: tuple[str, ...]

    def write(self, folder: Path, base_model: str, layers: Layers) -> tuple[str, ...]:
        """In PEFT's format; its target modules."""
        pairs = _without_gaps(self, base_model, layers)
        facts = _facts(self, base_model, tuple(pairs), layers)
        weights = {f"{name}.A": down.T for name, (down, _) in pairs.items()}
        weights |= {f"{name}.B": up.T for name, (_, up) in pairs.items()}
        write_adapter(folder, facts, weights, _stored_type(self))
        return target_modules(facts)


def uniform(pairs: Mapping[str, Pair], changes: tuple[str, ...] = ()) -> Plain:
    """Refuses what is out of bounds for a replica once it is uniform."""
    rank = max(pair.rank for pair in pairs.values())
    # The largest, so that no B grows.
    scale = max(pair.scale for pair in pairs.values())
    if not 0 < scale <= MAX_SCALE:
        refuse(f"lora_alpha scales its rank by {scale:g}, not by more than 0 and at most {MAX_SCALE:g}", _SMALLER)
    padded = {name: _padded(pair, rank, pair.scale / scale) for name, pair in pairs.items()}
    if any(float(up.abs().max()) > MAX_ABSOLUTE for _, up in padded.values()):
        refuse(f"its values exceed {MAX_ABSOLUTE:g}", _SMALLER)
    if any(pair.rank < rank for pair in pairs.values()):
        changes += (f"layers of lesser rank padded with zeros to rank {rank}",)
    if any(pair.scale != scale for pair in pairs.values()):
        changes += ("scales that differ between layers moved into lora_B",)
    return Plain(rank, scale * rank, padded, changes)


_SMALLER = "Train it again with a smaller lora_alpha or learning rate"


def _padded(pair: Pair, rank: int, factor: float) -> tuple[Tensor, Tensor]:
    missing = rank - pair.rank
    down = torch.nn.functional.pad(pair.down, (0, 0, 0, missing))
    up = torch.nn.functional.pad(pair.up, (0, missing))
    # In half precision only powers of two are exact factors.
    exact = factor == 1 or math.frexp(factor)[0] == 0.5
    return down, up * factor if exact else up.float() * factor


def _stored_type(plain: Plain) -> torch.dtype:
    """The one type of all, or else the one that holds each of them exactly."""
    types = {tensor.dtype for pair in plain.pairs.values() for tensor in pair}
    return types.pop() if len(types) == 1 else torch.float32


def _without_gaps(plain: Plain, base_model: str, layers: Layers) -> Mapping[str, tuple[Tensor, Tensor]]:
    """With zeros for layers that it leaves out, where naming those it changes one by one would take too many names."""
    if len(target_modules(_facts(plain, base_model, tuple(plain.pairs), layers))) <= MAX_TARGETS:
        return plain.pairs
    kind = _stored_type(plain)
    endings = {_ending(name) for name in plain.pairs}
    zeros = {
        name: (torch.zeros(plain.rank, into, dtype=kind), torch.zeros(out, plain.rank, dtype=kind))
        for name, (out, into) in layers.items()
        if _ending(name) in endings
    }
    return zeros | dict(plain.pairs)


def _facts(plain: Plain, base_model: str, trained: tuple[str, ...], layers: Layers) -> AdapterFacts:
    others = tuple(name for name in layers if name not in set(trained))
    return AdapterFacts(base_model=base_model, rank=plain.rank, alpha=plain.alpha, trained=trained, others=others)


def _ending(name: str) -> str:
    return name.rpartition(".")[2]
