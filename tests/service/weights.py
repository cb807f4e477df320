"""Weights of adapters that differ in their content, in files that a replica could take for a base of its own making."""

import hashlib
import json
import math

FEATURES = 16


def lora_file(mark: bytes, rank: int = 4) -> bytes:
    """A safetensors file of one layer, other bytes for each mark and always the same for one."""
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    entries: dict[str, dict[str, object]] = {}
    end = 0
    for side, shape in (("A", (rank, FEATURES)), ("B", (FEATURES, rank))):
        begin, end = end, end + math.prod(shape) * 4
        entries[f"{name}.lora_{side}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": (begin, end)}
    header = json.dumps(entries).encode()
    values = hashlib.sha256(mark).digest() * (end // 32)
    return len(header).to_bytes(8, "little") + header + values
