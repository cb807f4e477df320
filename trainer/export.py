"""A trained adapter in PEFT's format, which PEFT and vLLM read: adapter_config.json and adapter_model.safetensors.

It is read back only to begin another job with it.

Owns names, shapes, the config, and that nothing is written which no replica would serve. Weights take the base's own
stored dtype: vLLM casts them to it at load anyway, and half the bytes means half the cold load. The float32 masters
stay in the checkpoints.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from service.contracts.servable import MAX_TARGETS, Unservable, check_extremes, check_scale
from trainer.folder import save_tensors, whole_folder

if TYPE_CHECKING:
    from torch import Tensor, dtype


class AdapterInvalid(Exception):
    """The folder holds no adapter that a job can begin with. The message says why."""


@dataclass(frozen=True)
class AdapterFacts:
    """What the config says besides the weights."""

    base_model: str
    """Public name of the base. Never a path of the machine it was trained on."""
    rank: int
    alpha: float
    trained: tuple[str, ...]
    """Full names of the trained modules."""
    others: tuple[str, ...]
    """Full names of every other module of the base that a target could match by mistake."""


def check_facts(facts: AdapterFacts) -> None:
    """Raises Unservable where no training could make the adapter one that is served."""
    check_scale(facts.rank, facts.alpha)
    targets = len(target_modules(facts))
    if targets > MAX_TARGETS:
        raise Unservable(f"its modules can only be told apart by {targets} names, and {MAX_TARGETS} is the most")


def target_modules(facts: AdapterFacts) -> tuple[str, ...]:
    """The shortest targets that mean the trained modules and no other: last name parts, else whole names."""
    endings = {name.rpartition(".")[2] for name in facts.trained}
    stray = any(name.rpartition(".")[2] in endings for name in facts.others)
    return tuple(sorted(facts.trained if stray else endings))


def write_adapter(directory: Path, facts: AdapterFacts, tensors: "dict[str, Tensor]", stored: "dtype") -> None:
    """Writes the folder whole or not at all. `tensors` are as in a checkpoint: `<module>.A` and `<module>.B`.

    Raises Unservable where a replica would refuse it.
    """
    check_facts(facts)
    weights: dict[str, Tensor] = {}
    for module in facts.trained:
        for ours, theirs in (("A", "lora_A"), ("B", "lora_B")):
            # PEFT keeps each factor as a linear layer's weight: [out, in], the transpose of ours.
            weights[f"base_model.model.{module}.{theirs}.weight"] = (
                tensors[f"{module}.{ours}"].T.to(device="cpu", dtype=stored, copy=True).contiguous()
            )
    for name, tensor in weights.items():
        least, most = tensor.aminmax()
        check_extremes(name, float(least), float(most))
    with whole_folder(directory) as folder:
        save_tensors(folder / ADAPTER_WEIGHTS, weights)
        (folder / ADAPTER_CONFIG).write_text(json.dumps(_config(facts), indent=2, sort_keys=True) + "\n")


def read_adapter(directory: Path) -> "dict[str, Tensor]":
    """The weights that `write_adapter` was given, at the precision that it kept. Raises AdapterInvalid."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(directory / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise AdapterInvalid(f"{ADAPTER_WEIGHTS} is unreadable ({type(error).__name__})") from error
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        module, dot, factor = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        if not dot or factor not in ("A", "B"):
            raise AdapterInvalid(f"{ADAPTER_WEIGHTS} holds more than the factors of linear layers")
        tensors[f"{module}.{factor}"] = tensor.T
    return tensors


def _config(facts: AdapterFacts) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": facts.base_model,
        "revision": None,
        "inference_mode": True,
        "r": facts.rank,
        "lora_alpha": int(facts.alpha) if float(facts.alpha).is_integer() else facts.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(target_modules(facts)),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
