"""LoRA, rsLoRA and AdaLoRA by their own tensors: what the options mean, what the names and shapes must be.

Refuses every option under which the tensors would mean something else. The ranks come from the shapes and the layers
from the names; of the config's patterns only plain names are read.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trainer.convert.base import Layers
from trainer.convert.plain import Pair, Plain, uniform
from trainer.convert.reading import Header, require_floats, shown
from trainer.convert.refusal import MERGE, refuse

_TENSOR = re.compile(r"^base_model\.model\.(?P<module>[A-Za-z0-9_.]+)\.lora_(?P<side>[ABE])(?P<weight>\.weight)?$")
_PATTERN = re.compile(r"^\^?[A-Za-z0-9_.]{1,256}$")
MAX_PATTERNS = 10_000
AGAIN = "Save it with PEFT again"

_INIT = (
    "Save it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...), which makes it a plain LoRA of "
    "the unchanged base"
)

MEANINGS: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "use_dora": ((False, None), MERGE),
    "bias": (("none", None), MERGE),
    "lora_bias": ((False, None), MERGE),
    "modules_to_save": ((None, []), MERGE),
    "layer_replication": ((None, []), MERGE),
    "alora_invocation_tokens": ((None, []), "Train it again without activation tokens"),
    "trainable_token_indices": ((None, [], {}), MERGE),
    "target_parameters": ((None, []), MERGE),
    "use_qalora": ((False, None), MERGE),
    "use_bdlora": ((False, None), MERGE),
    "fan_in_fan_out": ((False, None), MERGE),
    "init_lora_weights": ((True, False, None, "gaussian", "orthogonal", "eva", "mica", "lora_ga"), _INIT),
}
"""Options under which tensors mean something else, what they may be, and what to do where they are something else."""

Tensors = Callable[[], dict[str, Tensor]]
"""Reads the file; not before its header is known to be good."""


class Patterns:
    """Values by PEFT's own rule: of the first pattern that is a module's name or the end of it after a dot."""

    def __init__(self, config: Mapping[str, Any], key: str, checked: Callable[[Any], Any]) -> None:
        given = config.get(key) or {}
        if not isinstance(given, dict) or len(given) > MAX_PATTERNS:
            refuse(f"{key} in adapter_config.json is no object of at most {MAX_PATTERNS} names", AGAIN)
        for pattern in given:
            if not _PATTERN.fullmatch(pattern):
                refuse(f"{key} holds the pattern {shown(pattern)}", "Write plain names of modules there")
        self._values = [(re.compile(rf"(.*\.)?({pattern})$"), checked(value)) for pattern, value in given.items()]

    def of(self, module: str, otherwise: Any) -> Any:
        return next((value for pattern, value in self._values if pattern.match(module)), otherwise)


@dataclass(frozen=True)
class Options:
    rank: int
    alpha: float
    root: bool
    """rsLoRA: alpha counts over the root of the rank."""
    ranks: "Patterns"
    alphas: "Patterns"

    def scale(self, module: str, rank: int) -> float:
        alpha = self.alphas.of(module, self.alpha)
        return alpha / (math.sqrt(rank) if self.root else rank)


def check_meanings(config: Mapping[str, Any]) -> None:
    for key, (permitted, advice) in MEANINGS.items():
        if key in config and not any(type(config[key]) is type(value) and config[key] == value for value in permitted):
            refuse(f"{key} in adapter_config.json is {shown(str(config[key]))}", advice, "adapter_unsupported")


def lora(config: Mapping[str, Any], header: Header, read: Tensors, layers: Layers, max_rank: int) -> Plain:
    check_meanings(config)
    options = _options(config)
    require_floats(header)
    found = _by_module(header, "AB")
    for module, sides in found.items():
        rank = options.ranks.of(module, options.rank)
        _check_shapes(module, sides, header, rank, layers, max_rank)
    tensors = read()
    pairs: dict[str, Pair] = {}
    for module, sides in found.items():
        down, up = tensors[sides["A"]], tensors[sides["B"]]
        pairs[module] = Pair(down, up, options.scale(module, down.shape[0]))
    rooted = ("rank-stabilised scale written as a plain one",) if options.root else ()
    return uniform(pairs, rooted)


def adalora(config: Mapping[str, Any], header: Header, read: Tensors, layers: Layers, max_rank: int) -> Plain:
    """Exact: x ↦ scale · B (A ∘ E) x / (rank + 1e-5), the rank being the one that training began with."""
    check_meanings(config)
    require_floats(header)
    begun = _rank(config, "init_r")
    alpha = _alpha(config.get("lora_alpha", 8), least=-math.inf)
    scale = (alpha if alpha > 0 else float(begun)) / (begun + 1e-5)
    found = _by_module(header, "ABE")
    for module, sides in list(found.items()):
        rank = header[sides["E"]].shape[0] if header[sides["E"]].shape else -1
        if not 0 <= rank <= begun or header[sides["E"]].shape != (rank, 1):
            refuse(f"{shown(module)} has a lora_E of shape {header[sides['E']].shape}", _OTHER_BASE)
        _check_shapes(module, sides, header, rank, layers, max_rank)
        if rank == 0:
            del found[module]
    if not found:
        refuse("no layer of it has any rank left", "Train it again with a larger target_r")
    tensors = read()
    pairs = {
        module: Pair(tensors[sides["A"]] * tensors[sides["E"]], tensors[sides["B"]], scale)
        for module, sides in found.items()
    }
    return uniform(pairs, ("AdaLoRA folded into LoRA",))


_OTHER_BASE = "Check that it was trained on this base model"


def _by_module(header: Header, wanted: str) -> dict[str, dict[str, str]]:
    """Names of tensors by module and side, each module with every side."""
    found: dict[str, dict[str, str]] = {}
    for name in header:
        match = _TENSOR.fullmatch(name)
        if match is None or match["side"] not in wanted or (match["weight"] is None) != ("E" in wanted):
            refuse(f"{shown(name)} is no tensor of a plain adapter{_of_vocabulary(name)}", MERGE, "adapter_unsupported")
        found.setdefault(match["module"], {})[match["side"]] = name
    for module, sides in found.items():
        if len(sides) < len(wanted):
            refuse(f"{shown(module)} lacks one of lora_{', lora_'.join(wanted)}", "Save it again whole")
    return found


def _of_vocabulary(name: str) -> str:
    """Why, where it is of the embeddings or the output head, by the names that most architectures have for them."""
    found = "lm_head" in name or "embed" in name
    return ": embeddings and output head are the base's own for every adapter" if found else ""


def _check_shapes(
    module: str, sides: Mapping[str, str], header: Header, rank: int, layers: Layers, max_rank: int
) -> None:
    if module not in layers:
        refuse(f"the base has no layer {shown(module)} that adapters may change", _OTHER_BASE, "base_mismatch")
    features_out, features_in = layers[module]
    down, up = header[sides["A"]].shape, header[sides["B"]].shape
    if down != (rank, features_in) or up != (features_out, rank):
        refuse(
            f"{shown(module)} has shapes {down} and {up}, but the base and the rank ask for "
            f"{(rank, features_in)} and {(features_out, rank)}",
            _OTHER_BASE,
            "base_mismatch",
        )
    require_rank(rank, max_rank)


def require_rank(rank: int, max_rank: int) -> None:
    if rank > max_rank:
        refuse(
            f"its rank {rank} exceeds the largest that is served, {max_rank}",
            f"Reduce it to rank {max_rank}, train it again, or ask the operator for a larger one",
            "rank_too_large",
        )


def _options(config: Mapping[str, Any]) -> Options:
    root = config.get("use_rslora")
    if root not in (True, False, None):
        refuse("use_rslora in adapter_config.json is neither true nor false", AGAIN)
    return Options(
        rank=_rank(config, "r"),
        alpha=_alpha(config.get("lora_alpha", 8)),
        root=bool(root),
        ranks=Patterns(config, "rank_pattern", lambda value: _rank({"r": value}, "r")),
        alphas=Patterns(config, "alpha_pattern", _alpha),
    )


def _rank(config: Mapping[str, Any], key: str) -> int:
    rank = config.get(key)
    if type(rank) is not int or not 1 <= rank <= 1 << 16:
        refuse(f"{key} in adapter_config.json is not a whole number above 0", AGAIN)
    return rank


def _alpha(value: Any, least: float = 0.0) -> float:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and least < value <= 1e9
    if not usable:
        refuse("lora_alpha in adapter_config.json is not a number above 0", AGAIN)
    return float(value)
