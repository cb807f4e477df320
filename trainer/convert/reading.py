"""An adapter's two files as they came: the config as JSON, the tensors by name after their header has been believed.

Owns what any kind of adapter must keep: plain safetensors, known types, finite and bounded values. What the tensors
mean is for `lora` and `kinds`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from service.contracts.servable import DTYPES, MAX_ABSOLUTE, MAX_CONFIG_BYTES, MAX_HEADER_BYTES
from service.contracts.tensor_header import BadHeader, once_each, read_header
from service.contracts.tensor_header import Tensor as Described
from trainer.convert.refusal import refuse

SAVE = "Save the adapter with PEFT's save_pretrained() and send the two files that it writes"

Header = Mapping[str, Described]


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    if path.stat().st_size > MAX_CONFIG_BYTES:
        refuse(f"{ADAPTER_CONFIG} is larger than {MAX_CONFIG_BYTES} bytes", SAVE)
    try:
        config = json.loads(path.read_bytes(), object_pairs_hook=once_each)
    except (ValueError, RecursionError):
        refuse(f"{ADAPTER_CONFIG} is not JSON with each key once", SAVE)
    if not isinstance(config, dict):
        refuse(f"{ADAPTER_CONFIG} is not an object", SAVE)
    return config


def read_tensors_header(folder: Path) -> Header:
    """Names, types and shapes; no tensor is read."""
    try:
        header = read_header(folder / ADAPTER_WEIGHTS, MAX_HEADER_BYTES)
    except BadHeader as error:
        refuse(f"{ADAPTER_WEIGHTS} is not a safetensors file: {error}", SAVE)
    if not header:
        refuse(f"{ADAPTER_WEIGHTS} holds no tensors", SAVE)
    return header


def require_floats(header: Header) -> None:
    for name, tensor in header.items():
        if tensor.dtype not in DTYPES:
            refuse(f"{shown(name)} is {tensor.dtype[:20]}", f"Save it in one of the types {', '.join(sorted(DTYPES))}")


def read_tensors(folder: Path, header: Header) -> dict[str, Tensor]:
    """All of them, finite and bounded where they are not whole numbers. Their sizes must have been judged."""
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(str(folder / ADAPTER_WEIGHTS), framework="pt") as file:
            if set(file.keys()) != header.keys():
                refuse(f"the names in {ADAPTER_WEIGHTS} are ambiguous", SAVE)
            for name in header:
                tensors[name] = _bounded(name, file.get_tensor(name))
    except SafetensorError:
        refuse(f"{ADAPTER_WEIGHTS} is not a safetensors file", SAVE)
    return tensors


def shown(name: str) -> str:
    """A stranger's name in a message."""
    return repr(name[:120])


def _bounded(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() and tensor.numel():
        least, most = torch.aminmax(tensor)
        # NaN spreads to both ends and fails every comparison.
        if not (float(least) >= -MAX_ABSOLUTE and float(most) <= MAX_ABSOLUTE):
            refuse(
                f"{shown(name)} holds values that are not finite or exceed {MAX_ABSOLUTE:g}",
                "Its training has diverged: train it again with a lower learning rate",
            )
    return tensor
