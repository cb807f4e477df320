"""Adapters that would harm a shared engine, each with a word of the reason for which the gate must refuse it."""

import json
import struct
from collections.abc import Callable
from typing import Any

import torch

from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tests.inference.adapters import HIDDEN, Adapter, Tensors, lora, lora_config, lora_tensors, pack

FIRST = "base_model.model.model.layers.0.self_attn.q_proj"
DOWN = f"{FIRST}.lora_A.weight"
NO_SAFETENSORS = "not a safetensors file"

Make = Callable[[], Adapter]


def is_down(name: str) -> bool:
    return ".lora_A." in name


def tensors(change: Callable[[Tensors], Tensors]) -> Make:
    return lambda: lora(1, tensors=change(lora_tensors(1)))


def each(change: Callable[[torch.Tensor], torch.Tensor], only: Callable[[str], bool] = lambda _: True) -> Make:
    return tensors(lambda t: {n: change(v) if only(n) else v for n, v in t.items()})


def config(**changes: Any) -> Make:
    return lambda: lora(1, **changes)


def raw_config(content: bytes) -> Make:
    return lambda: pack({**lora(1).files, ADAPTER_CONFIG: content})


def raw_weights(content: bytes | Callable[[bytes], bytes]) -> Make:
    def make() -> Adapter:
        sound = lora(1).files
        made = content if isinstance(content, bytes) else content(sound[ADAPTER_WEIGHTS])
        return pack({**sound, ADAPTER_WEIGHTS: made})

    return make


def header(change: Callable[[dict[str, Any]], None], more: bytes = b"") -> Make:
    """The sound file with its header changed, whatever that does to the rest."""

    def rewrite(sound: bytes) -> bytes:
        (length,) = struct.unpack("<Q", sound[:8])
        entries = json.loads(sound[8 : 8 + length])
        change(entries)
        return assembled(json.dumps(entries).encode(), sound[8 + length :] + more)

    return raw_weights(rewrite)


def assembled(text: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes: Any) -> Make:
    return header(lambda entries: entries[DOWN].update(changes))


def doubled_key(sound: bytes) -> bytes:
    (length,) = struct.unpack("<Q", sound[:8])
    text = sound[8 : 8 + length].rstrip()
    again = json.dumps({DOWN: json.loads(text)[DOWN]})[1:-1].encode()
    return assembled(text[:-1] + b"," + again + b"}", sound[8 + length :])


def overlap(entries: dict[str, Any]) -> None:
    other = FIRST.replace("q_proj", "v_proj") + ".lora_A.weight"
    entries[other]["data_offsets"] = entries[DOWN]["data_offsets"]


def manifest(**changes: Any) -> Make:
    return lambda: pack(lora(1).files, **changes)


def extra_file(name: str, content: bytes = b"x") -> Make:
    return lambda: pack({**lora(1).files, name: content})


def stranger(name: str, shape: tuple[int, ...] = (4, HIDDEN)) -> Make:
    """With its partner where it is one of a pair."""
    partner = {name.replace(".lora_A.", ".lora_B."): torch.zeros(shape[::-1])}
    return tensors(lambda t: {**t, **partner, name: torch.zeros(shape)})


HOSTILE: dict[str, tuple[Make, str]] = {
    # -- values
    "all nan": (each(lambda v: torch.full_like(v, torch.nan), lambda n: not is_down(n)), "not finite"),
    "one nan": (each(lambda v: v.index_fill(1, torch.tensor([0]), torch.nan)), "not finite"),
    "one infinity": (each(lambda v: v.index_fill(0, torch.tensor([0]), torch.inf)), "not finite"),
    "minus infinity in half precision": (each(lambda v: v.half().index_fill(0, torch.tensor([0]), -torch.inf)), "not"),
    "huge values": (each(lambda v: v * 1e6), "exceed"),
    "largest of bfloat16": (each(lambda v: torch.full_like(v, 3e38).bfloat16()), "exceed"),
    # -- shapes
    "half width": (each(lambda v: v[:, : v.shape[1] // 2], is_down), "shapes"),
    "double width": (each(lambda v: torch.cat([v, v], 1), is_down), "shapes"),
    "transposed": (each(lambda v: v.T), "shapes"),
    "rank lie, more": (
        tensors(lambda t: {n: torch.cat([v, v], 0 if is_down(n) else 1) for n, v in t.items()}),
        "shape",
    ),
    "rank lie, less": (tensors(lambda t: {n: v[:2] if is_down(n) else v[:, :2] for n, v in t.items()}), "shapes"),
    "rank lie in one layer": (each(lambda v: torch.cat([v, v]), lambda n: n == DOWN), "shapes"),
    "rank nought": (tensors(lambda t: {n: v[:0] if is_down(n) else v[:, :0] for n, v in t.items()}), "shapes"),
    "three dimensions": (each(lambda v: v[None]), "shapes"),
    "one dimension": (each(lambda v: v.flatten()), "shapes"),
    # -- names
    "missing partner": (tensors(lambda t: {n: v for n, v in t.items() if is_down(n)}), "only one"),
    "layer that the base has not": (stranger("base_model.model.model.layers.99.evil.lora_A.weight"), "no linear layer"),
    "layer of another architecture": (stranger("base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"), "no lin"),
    "norm as a layer": (stranger("base_model.model.model.norm.lora_A.weight"), "no linear layer"),
    "base weight": (stranger(f"{FIRST}.weight", (HIDDEN, HIDDEN)), "unknown tensor"),
    "embedding of another vocabulary": (stranger("base_model.model.model.embed_tokens.weight", (999, 64)), "unknown"),
    "magnitude vector": (stranger(f"{FIRST}.lora_magnitude_vector", (HIDDEN,)), "unknown tensor"),
    "bias": (stranger(f"{FIRST}.lora_B.bias", (HIDDEN,)), "unknown tensor"),
    "module to save": (stranger("base_model.model.lm_head.modules_to_save.weight", (320, HIDDEN)), "unknown tensor"),
    "path in a name": (stranger("base_model.model.../../../etc/passwd.lora_A.weight"), "unknown tensor"),
    "unicode look-alike": (stranger(DOWN.replace("a", "а", 1)), "unknown tensor"),
    "null in a name": (stranger(f"{DOWN}\x00"), "unknown tensor"),
    "endless name": (stranger("base_model.model." + "x" * 100_000 + ".lora_A.weight"), "no linear layer"),
    # -- types
    "integers": (each(lambda v: v.to(torch.int32)), "I32"),
    "doubles": (each(lambda v: v.double()), "F64"),
    "booleans": (each(lambda v: v > 0), "BOOL"),
    "eight bits": (each(lambda v: v.to(torch.float8_e4m3fn)), "F8"),
    # -- the file of weights
    "empty file": (raw_weights(b""), NO_SAFETENSORS),
    "pickle": (raw_weights(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94"), NO_SAFETENSORS),
    "archive of torch": (raw_weights(b"PK\x03\x04" + bytes(64)), NO_SAFETENSORS),
    "noise": (raw_weights(b"\xff" * 64), NO_SAFETENSORS),
    "header longer than the file": (raw_weights((1 << 40).to_bytes(8, "little") + b"{}"), NO_SAFETENSORS),
    "header of megabytes": (raw_weights(lambda s: assembled(b" " * (5 << 20) + b"{}", b"")), "larger than"),
    "deep header": (raw_weights(assembled(b"[" * 50_000, b"")), NO_SAFETENSORS),
    "header that is a list": (raw_weights(assembled(b"[]", b"")), NO_SAFETENSORS),
    "no tensors": (raw_weights(assembled(b"{}      ", b"")), "no tensors"),
    "truncated": (raw_weights(lambda sound: sound[:-4]), NO_SAFETENSORS),
    "bytes after the end": (raw_weights(lambda sound: sound + b"\x00" * 64), NO_SAFETENSORS),
    "same key twice": (raw_weights(doubled_key), NO_SAFETENSORS),
    "overlapping tensors": (header(overlap), NO_SAFETENSORS),
    "hole": (header(lambda _: None, more=b"\x00" * 16), NO_SAFETENSORS),
    "negative dimension": (entry(shape=[-4, -HIDDEN]), NO_SAFETENSORS),
    "dimension beyond 64 bits": (entry(shape=[1 << 70, 0]), NO_SAFETENSORS),
    "product that overflows": (entry(shape=[1 << 40, 1 << 40]), NO_SAFETENSORS),
    "offsets backwards": (entry(data_offsets=[64, 0]), NO_SAFETENSORS),
    "offset past the end": (entry(data_offsets=[0, 1 << 40]), NO_SAFETENSORS),
    "shape that is no list": (entry(shape="4x64"), NO_SAFETENSORS),
    "boolean dimension": (entry(shape=[True, 4 * HIDDEN]), NO_SAFETENSORS),
    "unknown type": (entry(dtype="PICKLE"), "PICKLE"),
    # -- the configuration
    "huge alpha": (config(lora_alpha=1e38), "lora_alpha"),
    "alpha just above the bound": (config(lora_alpha=4 * 64 + 1), "scales"),
    "alpha of four hundred digits": (raw_config(json.dumps(lora_config(lora_alpha=10**400)).encode()), "lora_alpha"),
    "negative alpha": (raw_config(json.dumps(lora_config(lora_alpha=-8)).encode()), "lora_alpha"),
    "alpha that is no number": (raw_config(json.dumps(lora_config(lora_alpha=float("nan"))).encode()), "lora_alpha"),
    "alpha that is true": (raw_config(b'{"r": 4, "lora_alpha": true, "target_modules": ["q_proj"]}'), "lora_alpha"),
    "huge rank-stabilised alpha": (config(use_rslora=True, lora_alpha=130), "scales"),
    "rank as text": (raw_config(json.dumps(lora_config() | {"r": "4"}).encode()), "rank"),
    "negative rank": (raw_config(json.dumps(lora_config() | {"r": -4}).encode()), "rank"),
    "dora": (config(use_dora=True), "use_dora"),
    "dora as a number": (config(use_dora=1), "use_dora"),
    "trained bias": (config(bias="all"), "bias"),
    "lora bias": (config(lora_bias=True), "lora_bias"),
    "modules to save": (config(modules_to_save=["lm_head"]), "modules_to_save"),
    "another method": (config(peft_type="IA3"), "peft_type"),
    "pattern of ranks": (config(rank_pattern={"(a+)+$": 4}), "rank_pattern"),
    "pattern of alphas": (config(alpha_pattern={"q_proj": 1e38}), "alpha_pattern"),
    "copied layers": (config(layer_replication=[[0, 2]]), "layer_replication"),
    "changed base": (config(init_lora_weights="pissa"), "init_lora_weights"),
    "transposed weights": (config(fan_in_fan_out=True), "fan_in_fan_out"),
    "activated tokens": (config(alora_invocation_tokens=[1]), "alora_invocation_tokens"),
    "new tokens": (config(trainable_token_indices=[319]), "trainable_token_indices"),
    "path as target": (config(target_modules=["../../../../etc/passwd"]), "target_modules"),
    "pattern as target": (config(target_modules="(.*)*$"), "target_modules"),
    "code as target": (config(target_modules=["__import__('os')"]), "target_modules"),
    "no targets": (config(target_modules=[]), "target_modules"),
    "ten thousand targets": (config(target_modules=["q_proj"] * 10_000), "target_modules"),
    "configuration of nothing": (raw_config(b""), "not JSON"),
    "configuration that is a list": (raw_config(b"[]"), "not an object"),
    "configuration of wrong bytes": (raw_config(b"\xff"), "not JSON"),
    "deep configuration": (raw_config(b"[" * 100_000), "not JSON"),
    "rank twice": (raw_config(json.dumps(lora_config()).encode()[:-1] + b', "r": 4}'), "not JSON"),
    # -- the manifest
    "another base": (manifest(base_fingerprint="e" * 64), "another build"),
    "another chat template": (manifest(chat_template_sha256="e" * 64), "another chat template"),
    "rank above the replica's": (manifest(rank=32), "exceeds"),
    "rank that the configuration denies": (lambda: pack(lora(1, rank=8, lora_alpha=8.0).files, rank=4), "disagree"),
    "alpha that the configuration denies": (manifest(alpha=4.0), "disagree"),
    "no weights": (lambda: pack({ADAPTER_CONFIG: lora(1).files[ADAPTER_CONFIG]}), "missing"),
    "no configuration": (lambda: pack({ADAPTER_WEIGHTS: lora(1).files[ADAPTER_WEIGHTS]}), "missing"),
    "weights as a pickle beside": (extra_file("adapter_model.bin"), "no place"),
    "weights of torch beside": (extra_file("adapter_model.pt"), "no place"),
    "code beside": (extra_file("run.py"), "no place"),
    "pickled tokenizer beside": (extra_file("tokenizer.pkl"), "no place"),
    "its own manifest": (extra_file("manifest.json"), "no place"),
    "text of megabytes": (extra_file("notes.md", b"x" * (1 << 20) + b"x"), "no place"),
    "hundred files": (lambda: pack({**lora(1).files, **{f"f{n}.json": b"{}" for n in range(100)}}), "too many"),
}
