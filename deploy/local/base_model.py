"""The facts of a base model that service, trainer and replica must agree on, read from its files. Loads no weights."""

import hashlib
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

from deploy.local import tiny_base
from deploy.local.folder import StackError
from service.contracts.base_model import BaseModelInfo
from service.contracts.chat_template import chat_template

TINY = "weft-tiny"
WEIGHTS = "*.safetensors"
TOKENIZER = "tokenizer.json"
HUB_FILES = [WEIGHTS, "*.json", "*.jinja", "*.txt", "*.model"]
FALLBACK_CONTEXT = 2048


def describe(base: str | None) -> BaseModelInfo:
    """Facts of the base in a folder or on the hub, or of the tiny base where none is named. `source` is a local folder.

    A hub id is brought into the hub's own cache first. Raises StackError with what to do.
    """
    if base is None:
        return read(tiny_base.MODEL_DIR, TINY)
    folder = Path(base).expanduser()
    if folder.is_dir():
        return read(folder.resolve(), public_name(folder.resolve().name))
    if base.startswith((".", "/", "~")):
        raise StackError(f"there is no folder {folder}; --base takes a folder with a model or a hub id")
    return read(_from_hub(base), public_name(base))


def read(folder: Path, name: str) -> BaseModelInfo:
    """Facts of the model in `folder`, under the public name `name`."""
    weights = sorted(folder.glob(WEIGHTS))
    config = _json(folder / "config.json")
    if not weights or not config:
        raise StackError(f"{folder} holds no model: a base needs config.json and weights as safetensors")
    text: dict[str, Any] = config.get("text_config") or config
    template = _template(folder)
    if template is None:
        raise StackError(f"{folder} has no chat template; use an instruction-tuned base or add chat_template.jinja")
    try:
        return BaseModelInfo(
            name=name,
            source=str(folder),
            fingerprint=fingerprint([folder / "config.json", *weights]),
            chat_template_sha256=hashlib.sha256(template.encode()).hexdigest(),
            architecture=config["architectures"][0],
            hidden_size=text["hidden_size"],
            context_length=text.get("max_position_embeddings") or FALLBACK_CONTEXT,
            longest_token=longest_token(folder),
            tokenizer=str(folder / TOKENIZER) if (folder / TOKENIZER).exists() else None,
            parameters=sum(parameters(path) for path in weights),
        )
    except (KeyError, IndexError, struct.error, ValueError, OSError) as error:
        raise StackError(f"{folder} cannot be read as a base model: {type(error).__name__} {error}") from error


def public_name(source: str) -> str:
    """A name that tenants may use in a model field and that has no separator of fine-tuned names in it."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", source.rsplit("/", 1)[-1]).strip("-._")
    return cleaned[:64] or "base"


def fingerprint(files: list[Path]) -> str:
    """One sha256 over the names and contents of the files that decide what the model computes."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def longest_token(folder: Path) -> int | None:
    """Characters of it as the tokenizer writes it, at least those of the text it is. None where there is no file."""
    tokenizer = _json(folder / TOKENIZER)
    vocabulary = tokenizer.get("model", {}).get("vocab", ())
    # A mapping to ids or, of unigram models, pairs with scores.
    tokens = [entry if isinstance(entry, str) else entry[0] for entry in vocabulary]
    tokens += [entry["content"] for entry in tokenizer.get("added_tokens", ())]
    return max(map(len, tokens), default=None)


def parameters(weights: Path) -> int:
    """Number of weights in a safetensors file, from its header alone."""
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _template(folder: Path) -> str | None:
    try:
        return chat_template(folder)
    except ValueError as error:
        raise StackError(f"the chat template in {folder} cannot be read: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise StackError(f"{path} is not JSON: {error}") from error


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except HFValidationError:
        raise StackError(f"{name!r} is neither a folder nor a hub id such as organisation/model") from None
    except (
        Exception
    ) as error:  # The hub's client raises a different family of errors for each way of being unreachable.
        reason = str(error).strip().split("\n")[0]
        raise StackError(
            f"the base {name!r} is not in the cache and cannot be fetched from the hub "
            f"({type(error).__name__}: {reason}); name a local folder instead"
        ) from error
