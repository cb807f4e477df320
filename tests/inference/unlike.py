"""Adapters with a canary of the trainer's own engine, and ones that pass every gate with the canary of another."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load, save

from service.contracts.manifest import ADAPTER_WEIGHTS, Canary
from tests.inference.adapters import Adapter, Tensors, pack
from tests.inference.conftest import write_base
from trainer.engine.adapter import AdapterSettings
from trainer.engine.base import load_engine
from trainer.engine.canary import canary

RANK, ALPHA = 8, 16.0


def sound(base: Path, folder: Path, seed: int) -> Adapter:
    """As a job leaves it, its weights random; `folder` is for its files and must not exist."""
    engine = load_engine(str(base), "cpu", threads=1)
    adapter = engine.create_adapter(AdapterSettings(rank=RANK, alpha=ALPHA, targets="all-linear", seed=seed))
    source = torch.Generator().manual_seed(seed)
    weights = engine.weights(adapter)
    engine.begin_with(adapter, {n: torch.randn(v.shape, generator=source) * 0.1 for n, v in weights.items()})
    engine.export(adapter, folder, "base")
    found = canary(engine, adapter)
    assert found is not None
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return pack(files, seed=seed, rank=RANK, alpha=ALPHA, canary=found)


def unlike(base: Path, folder: Path) -> dict[str, Adapter]:
    """Each passes every check of names, shapes and values, and states the canary that its like would have."""
    true = sound(base, folder / "sound", seed=1)
    other_base = folder / "base"
    write_base(other_base, seed=1)
    other = sound(base, folder / "other", seed=2)
    foreign = sound(other_base, folder / "foreign", seed=1)
    assert foreign.manifest.base_fingerprint == true.manifest.base_fingerprint
    assert true.manifest.canary is not None
    return {
        "trained on another base": foreign,
        "rows of its weights permuted": _with(true, _permuted),
        "layers exchanged": _with(true, _exchanged),
        "weights that do nothing": _with(true, lambda weights: {n: torch.zeros_like(v) for n, v in weights.items()}),
        "another adapter's weights": _with(true, lambda _: load(other.files[ADAPTER_WEIGHTS])),
        "canary beyond the vocabulary": pack(
            true.files,
            seed=1,
            rank=RANK,
            alpha=ALPHA,
            canary=Canary.model_validate(true.manifest.canary.model_dump() | {"prompt": (1 << 20,)}),
        ),
    }


def _with(adapter: Adapter, change: Callable[[Tensors], Tensors]) -> Adapter:
    weights = save({name: value.contiguous() for name, value in change(load(adapter.files[ADAPTER_WEIGHTS])).items()})
    files = {**adapter.files, ADAPTER_WEIGHTS: weights}
    return pack(files, seed=1, rank=RANK, alpha=ALPHA, canary=adapter.manifest.canary)


def _permuted(weights: Tensors) -> Tensors:
    source = torch.Generator().manual_seed(3)
    return {
        name: value[torch.randperm(len(value), generator=source)] if ".lora_B." in name else value
        for name, value in weights.items()
    }


def _exchanged(weights: Tensors) -> Tensors:
    first, second = ".layers.0.", ".layers.1."
    return {
        name.replace(first, "|").replace(second, first).replace("|", second): value for name, value in weights.items()
    }
