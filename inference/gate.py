"""What an adapter must be before a shared engine sees it; one bad adapter can spoil or stop every tenant's answers.

Plain LoRA in safetensors, made for this base: every pair of tensors fits one linear layer exactly, every value is
finite and bounded, and the scale is bounded too, because finite weights under a huge alpha overflow all the same. The
layers come from the base's own configuration, built without weights, so every architecture is judged exactly.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from inference.problems import AdapterError
from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST, AdapterManifest
from service.contracts.servable import (
    MAX_CONFIG_BYTES,
    MAX_HEADER_BYTES,
    MAX_SCALE,
    MAX_TARGETS,
    Pair,
    Unservable,
    check_extremes,
    check_scale,
    pairs_of,
)
from service.contracts.tensor_header import BadHeader, once_each, read_header

MAX_FILES = 16
_MODULE = re.compile(r"^[A-Za-z0-9_.]{1,256}$")
_HARMLESS_FILE = re.compile(r"^[A-Za-z0-9_-]+\.(json|md)$")

_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", None),
}
"""PEFT options that would change what the tensors mean; absent is always fine."""

Layers = Mapping[str, tuple[int, int]]
"""Linear layers of the base by module name: (output features, input features)."""


class AdapterGate:
    """Judges adapters for one base. `layers` and `template`, the hash of its chat template, are called once each."""

    def __init__(
        self,
        layers: Callable[[], Layers],
        template: Callable[[], str | None],
        *,
        base_fingerprint: str,
        max_rank: int,
    ) -> None:
        self._layers = functools.cache(layers)
        self._template = functools.cache(template)
        self._fingerprint = base_fingerprint
        self._max_rank = max_rank

    def check_manifest(self, manifest: AdapterManifest) -> None:
        if manifest.base_fingerprint != self._fingerprint:
            _refuse(f"it was trained on another build of the base ({manifest.base_model})")
        if manifest.chat_template_sha256 not in (None, self._template()):
            _refuse("it was trained with another chat template than the base has here")
        if manifest.rank > self._max_rank:
            _refuse(f"its rank {manifest.rank} exceeds this replica's {self._max_rank}")
        sizes = {file.path: file.size for file in manifest.files}
        if len(sizes) != len(manifest.files) or len(sizes) > MAX_FILES:
            _refuse("its manifest names too many files")
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            if name not in sizes:
                _refuse(f"{name} is missing")
        for name, size in sizes.items():
            harmless = _HARMLESS_FILE.fullmatch(name) and name != MANIFEST and size <= MAX_CONFIG_BYTES
            if name != ADAPTER_WEIGHTS and not harmless:
                _refuse(f"{name} has no place in an adapter")

    def prepare(self) -> None:
        """Learns of the base what there is to know now, so that the first adapter need not wait for it."""
        import torch

        # Small tensors: a second thread saves nothing, and while the engine has its core each of them waits for it.
        torch.set_num_threads(1)
        self._layers()
        self._template()

    def check_files(self, folder: Path, manifest: AdapterManifest) -> None:
        for file in manifest.files:
            path = folder / file.path
            if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size:
                _refuse(f"{file.path} is not a plain file of the size that its manifest states")
        try:
            rank, alpha = _check_config(folder / ADAPTER_CONFIG, self._max_rank)
            if (rank, alpha) != (manifest.rank, manifest.alpha):
                _refuse("adapter_config.json and the manifest disagree on rank or alpha")
            _check_weights(folder / ADAPTER_WEIGHTS, self._layers(), rank)
        except Unservable as reason:
            _refuse(str(reason))


def layers_of_base(source: str) -> Layers:
    """Every linear layer but the output head, which is the base's own as its embeddings are (`inference.engine`).

    Reads the base's configuration, from a folder or the local hub cache, and builds it without weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def template_of_base(source: str) -> str | None:
    """sha256 of the chat template's text, as the trainer's; of the one called "default" where there are several."""
    from transformers import AutoTokenizer

    template: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=True).chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return hashlib.sha256(template.encode()).hexdigest() if template else None


def _check_config(path: Path, max_rank: int) -> tuple[int, float]:
    try:
        config = json.loads(path.read_bytes(), object_pairs_hook=once_each)
    except (ValueError, RecursionError):
        _refuse("adapter_config.json is not JSON with each key once")
    if not isinstance(config, dict):
        _refuse("adapter_config.json is not an object")
    for key, permitted in _PLAIN.items():
        if key in config and not any(type(config[key]) is type(value) and config[key] == value for value in permitted):
            _refuse(f"{key} in adapter_config.json is not supported here")
    _check_targets(config.get("target_modules"))
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= max_rank:
        _refuse(f"its rank is not between 1 and {max_rank}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= MAX_SCALE * max_rank:
        _refuse(f"lora_alpha is not a number between 0 and {MAX_SCALE * max_rank:g}")
    check_scale(rank, alpha, stabilised=bool(config.get("use_rslora")))
    return rank, float(alpha)


def _check_targets(targets: Any) -> None:
    """Plain names only: PEFT takes a string for a pattern, and no pattern of a stranger's is evaluated here."""
    if not isinstance(targets, list) or not targets or len(targets) > MAX_TARGETS:
        _refuse(f"target_modules in adapter_config.json is not a list of 1 to {MAX_TARGETS} names")
    for name in targets:
        if not isinstance(name, str) or not _MODULE.fullmatch(name):
            _refuse(f"target_modules names {str(name)[:120]!r}, which is no module")


def _check_weights(path: Path, layers: Layers, rank: int) -> None:
    import torch
    from safetensors import SafetensorError, safe_open

    expected = sum((features_out + features_in) * rank * 4 for features_out, features_in in layers.values())
    if path.stat().st_size > expected + MAX_HEADER_BYTES:
        _refuse("its weights are larger than this base and rank can have")
    try:
        header = read_header(path, MAX_HEADER_BYTES)
        for module, pair in pairs_of(header, rank).items():
            _check_layer(module, pair, layers)
        with safe_open(str(path), framework="pt") as tensors:
            if set(tensors.keys()) != header.keys():
                raise BadHeader("its names are ambiguous")
            for name in header:
                least, most = torch.aminmax(tensors.get_tensor(name))
                check_extremes(name, float(least), float(most))
    except BadHeader as error:
        _refuse(f"{path.name} is not a safetensors file: {error}")
    except SafetensorError:
        _refuse(f"{path.name} is not a safetensors file")


def _check_layer(module: str, pair: Pair, layers: Layers) -> None:
    if module not in layers:
        _refuse(f"the base has no linear layer {module[:120]!r} that adapters may change")
    ours, theirs = (pair.features_out, pair.features_in), layers[module]
    if ours != theirs:
        _refuse(f"{module} has shapes for {ours} features out and in, not {theirs}")


def _refuse(reason: str) -> NoReturn:
    raise AdapterError("adapter_invalid", f"This adapter cannot be served: {reason}.")
