"""Kinds of adapters that PEFT itself turns into LoRA without loss: loaded with PEFT, converted, and compared.

Of a stranger's config only numbers within bounds and plain names reach PEFT. What no conversion keeps exactly is
refused with what to do instead.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from peft import PeftModel, convert_to_lora, get_peft_model, set_peft_model_state_dict
from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from peft.utils.save_and_load import get_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from trainer.convert.base import Layers
from trainer.convert.lora import AGAIN, Patterns, check_meanings, require_rank
from trainer.convert.plain import Pair, Plain, uniform
from trainer.convert.reading import Header, shown
from trainer.convert.refusal import MERGE, Refused, refuse, refused

EXACT = frozenset({"VERA", "MISS", "DELORA", "GRALORA", "VBLORA", "UNILORA", "TINYLORA", "PSOFT"})
LOSSY = frozenset({"LOHA", "LOKR", "RANDLORA", "C3A", "FOURIERFT", "WAVEFT"})
PROMPTS = frozenset(
    {"PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"}
)

LARGEST = 1 << 12
"""Of a number in a config that says how much there is of something."""
LARGER: Mapping[str, int] = {
    "theta_d_length": 1 << 24,
    **dict.fromkeys(("projection_prng_key", "proj_seed", "projection_seed", "random_seed"), 1 << 62),
}
RANKS = ("r", "hybrid_r")

UNUSABLE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What PEFT and torch raise over numbers that do not go together, or ask for too much."""

_IGNORED = re.compile(
    r"^(auto_mapping|base_model_name_or_path|revision|task_type|inference_mode|peft_type|peft_version|runtime_config|\w*dropout)$"
)
_NAME = re.compile(r"^[A-Za-z0-9_.-]{1,256}$")
_NAMES = frozenset({"target_modules", "exclude_modules", "layers_pattern"})


def require_known(kind: str) -> None:
    """Refuses every kind that `load` and `candidates` cannot make a LoRA of."""
    if kind in EXACT:
        return
    if kind in PROMPTS:
        reason, advice = "is a learned prompt and changes no layer", "Train it again as LoRA"
    elif kind in LOSSY:
        reason, advice = "would lose part of what it learned as LoRA", MERGE
    elif kind in PeftType.__members__:
        reason, advice = "has no LoRA that does the same", MERGE
    else:
        reason, advice = "is no kind of adapter that is known here", "Save it with PEFT 0.21 or older"
    refuse(f"its kind {shown(kind)} {reason}", advice, "adapter_unsupported")


def load(
    base: PreTrainedModel,
    config: Mapping[str, Any],
    header: Header,
    read: Callable[[], dict[str, Tensor]],
    max_rank: int,
) -> PeftModel:
    """The base with the adapter as PEFT understands it. Every tensor of the file has its place, and each place one."""
    kind = str(config["peft_type"])
    made = _config(kind, config, max_rank)
    try:
        model = get_peft_model(base, made)
    except UNUSABLE as error:
        raise _unusable(error) from error
    assert isinstance(model, PeftModel)
    places = get_peft_model_state_dict(model, save_embedding_layers=False)
    shapes = {name: tuple(tensor.shape) for name, tensor in places.items()}
    if {name: tensor.shape for name, tensor in header.items()} != shapes:
        strange = sorted(set(header) ^ set(shapes)) or [n for n, t in header.items() if t.shape != shapes[n]]
        advice = "Check that it was trained on this base model"
        refuse(f"{shown(strange[0])} is not as its config and the base ask for", advice, "base_mismatch")
    try:
        set_peft_model_state_dict(model, read())
    except UNUSABLE as error:
        raise _unusable(error) from error
    return model.eval()


def candidates(model: PeftModel, layers: Layers, max_rank: int) -> Iterator[Plain]:
    """Conversions at growing ranks: a kind's own rank is not always that of what it does."""
    config = model.peft_config["default"]
    kind, rank = PeftType(config.peft_type).value, int(getattr(config, "r", 1))
    most = min(max_rank, *(min(shape) for shape in layers.values()))
    while rank <= most:
        try:
            _, found = convert_to_lora(model, rank)
        except UNUSABLE as error:
            raise _unusable(error) from error
        yield uniform(dict(_pairs(found)), (f"{kind} converted to LoRA of rank {rank}",))
        rank = rank * 2 if rank * 2 <= most or rank == most else most


def _pairs(found: dict[str, Tensor]) -> Iterator[tuple[str, Pair]]:
    for name, down in found.items():
        module, dot, _ = name.removeprefix("base_model.model.").rpartition(".lora_A.")
        if dot:
            up = found[f"base_model.model.{module}.lora_B.weight"]
            yield module, Pair(down.detach(), up.detach(), 1.0)


def _config(kind: str, config: Mapping[str, Any], max_rank: int) -> PeftConfig:
    check_meanings({key: value for key, value in config.items() if key not in ("init_lora_weights", "init_weights")})
    made = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    known = {field.name for field in dataclasses.fields(made)}
    values = {}
    for key, value in config.items():
        if _IGNORED.fullmatch(key):
            continue
        if key not in known:
            refuse(f"{shown(key)} in adapter_config.json is no option of {kind} that is known here", AGAIN)
        values[key] = _checked(key, value, max_rank)
    try:
        return made(**values, inference_mode=True)
    except UNUSABLE as error:
        raise _unusable(error) from error


def _checked(key: str, value: Any, max_rank: int) -> Any:
    if key in RANKS and isinstance(value, int):
        require_rank(value, max_rank)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and abs(value) <= LARGER.get(key, LARGEST):
        return value
    if isinstance(value, str) and _NAME.fullmatch(value) and (key not in _NAMES or value == "all-linear"):
        return value
    if key in _NAMES and _are(value, lambda each: isinstance(each, str) and _NAME.fullmatch(each)):
        return value
    if key == "layers_to_transform" and _are(value, lambda each: type(each) is int and 0 <= each < LARGEST):
        return value
    if key.endswith("_pattern") and isinstance(value, dict):
        Patterns({key: value}, key, lambda each: _checked("r", each, max_rank))
        return value
    raise refused(f"{key} in adapter_config.json is {shown(str(value))}", "Write plain names and small numbers there")


def _are(value: Any, fine: Callable[[Any], Any]) -> bool:
    return isinstance(value, list) and len(value) <= LARGEST and all(fine(each) for each in value)


def _unusable(error: Exception) -> Refused:
    return Refused(
        "adapter_invalid", f"This adapter cannot be imported: PEFT cannot load it ({type(error).__name__}). {AGAIN}."
    )
