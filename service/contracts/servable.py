"""What every adapter keeps to be served, in one place: whoever accepts, makes or takes one holds it to the same bounds.

A job is refused that could only make an adapter out of bounds; the trainer judges values before it stores them; the
service judges the stored file's header again; the replica judges everything, whatever was said before.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from service.contracts.tensor_header import Tensor

MAX_RANK = 64
"""What trainers train and replicas serve, where the operator says nothing else."""

MAX_ABSOLUTE = 1e3
"""Of a value in its tensors."""

MAX_SCALE = 64.0
"""Of alpha over rank: finite weights under a huge alpha overflow all the same."""

MAX_CONFIG_BYTES = 1 << 20
MAX_HEADER_BYTES = 4 << 20
MAX_TARGETS = 256
DTYPES = frozenset({"F32", "F16", "BF16"})

_TENSOR = re.compile(r"^base_model\.model\.(?P<module>[A-Za-z0-9_.]+)\.lora_(?P<side>[AB])\.weight$")


class Unservable(ValueError):
    """The message completes "This adapter cannot be served: …"."""


@dataclass(frozen=True)
class Pair:
    """What one layer's two tensors, lora_A and lora_B of the same rank, take in and put out."""

    features_in: int
    features_out: int


def check_scale(rank: int, alpha: float, *, stabilised: bool = False) -> None:
    """Raises Unservable. `stabilised` is PEFT's `use_rslora`, which divides by the root of the rank."""
    if not 0 < alpha / (math.sqrt(rank) if stabilised else rank) <= MAX_SCALE:
        raise Unservable(f"lora_alpha scales its rank by more than {MAX_SCALE:g}")


def check_extremes(name: str, least: float, most: float) -> None:
    """Of one tensor's values. Raises Unservable; NaN spreads to both ends and fails every comparison."""
    if not (least >= -MAX_ABSOLUTE and most <= MAX_ABSOLUTE):
        raise Unservable(f"{name} holds values that are not finite or exceed {MAX_ABSOLUTE:g}")


def pairs_of(header: Mapping[str, Tensor], rank: int) -> dict[str, Pair]:
    """By module, from the header alone; no tensor is read. Raises Unservable.

    Whether the base has these layers, and of these sizes, only those who know the base can say.
    """
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in header.items():
        found = _TENSOR.fullmatch(name)
        if found is None:
            raise Unservable(f"unknown tensor {name[:120]!r}")
        if tensor.dtype not in DTYPES:
            raise Unservable(f"{name[:120]} is {tensor.dtype[:20]}; only F32, F16 and BF16 are served")
        sides.setdefault(found["module"], {})[found["side"]] = tensor.shape
    if not sides:
        raise Unservable("it holds no tensors")
    return {module: _pair(module, shapes, rank) for module, shapes in sides.items()}


def _pair(module: str, shapes: Mapping[str, tuple[int, ...]], rank: int) -> Pair:
    if set(shapes) != {"A", "B"}:
        raise Unservable(f"{module[:120]} has only one of lora_A and lora_B")
    match shapes["A"], shapes["B"]:
        case (down, features_in), (features_out, up) if down == up == rank:
            return Pair(features_in, features_out)
        case down, up:
            raise Unservable(f"{module[:120]} has shapes {down} and {up}, which are not of rank {rank}")
