"""The header of a safetensors file, read strictly: what any two readers could understand differently is refused.

Each name once, every tensor exactly as long as its shape, the tensors back to back from the first byte to the last. The
values are read by the library itself; whether these are the right tensors is for whoever reads them: the replica's gate
and the import of adapters.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

LENGTH_BYTES = 8
"""What comes before the header: how long it is."""
_WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_MOST_DIMENSIONS = 8


class BadHeader(ValueError):
    """The message completes "not a safetensors file: …"."""


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path, limit: int) -> Mapping[str, Tensor]:
    """The tensors by name; raises BadHeader."""
    with path.open("rb") as file:
        return parse_header(file.read(LENGTH_BYTES + limit), path.stat().st_size, limit)


def parse_header(beginning: bytes, size: int, limit: int) -> Mapping[str, Tensor]:
    """The same of a file of `size` bytes that begins so: `limit` bytes after the length are enough."""
    length = int.from_bytes(beginning[:LENGTH_BYTES], "little")
    if not 2 <= length <= min(limit, size - LENGTH_BYTES):
        raise BadHeader(f"its header claims {length} bytes")
    try:
        entries = json.loads(beginning[LENGTH_BYTES : LENGTH_BYTES + length], object_pairs_hook=once_each)
    except (ValueError, RecursionError) as error:
        raise BadHeader("its header is not JSON with each key once") from error
    if not isinstance(entries, dict):
        raise BadHeader("its header is no object")
    described = cast("dict[str, Any]", entries)
    described.pop("__metadata__", None)
    tensors = {name: _tensor(name, entry) for name, entry in described.items()}
    _check_layout(tensors, size - LENGTH_BYTES - length)
    return tensors


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads: readers differ in which of two equal keys they believe."""
    if len(names := dict(pairs)) != len(pairs):
        raise ValueError("a key appears twice")
    return names


def _tensor(name: str, entry: Any) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*dimensions], "data_offsets": [begin, end], **rest} if not rest:
            shape: list[Any] = dimensions
            numbers: list[Any] = [*shape, begin, end]
        case _:
            raise BadHeader(f"{name[:120]!r} is not described by dtype, shape and data_offsets")
    if len(shape) > _MOST_DIMENSIONS or not all(type(number) is int and 0 <= number < 1 << 48 for number in numbers):
        raise BadHeader(f"{name[:120]!r} has an impossible shape or offset")
    if dtype in _WIDTH and end - begin != math.prod(shape) * _WIDTH[dtype]:
        raise BadHeader(f"{name[:120]!r} is not as long as its shape")
    return Tensor(dtype, tuple(shape), begin, end)


def _check_layout(tensors: Mapping[str, Tensor], size: int) -> None:
    reached = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != reached:
            raise BadHeader("its tensors overlap or leave holes")
        reached = tensor.end
    if reached != size:
        raise BadHeader("its tensors do not fill it")
