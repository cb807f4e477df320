"""Manifests of adapters and checkpoints: which files, which hashes, which base. The manifest is always written last."""

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.contracts.ids import AdapterId

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MANIFEST = "manifest.json"


class ManifestFile(BaseModel):
    """One object of a manifest, relative to the manifest's own folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0, description="Bytes.")


class Canary(BaseModel):
    """What the trainer saw the adapter predict after a fixed prompt. Who loads it elsewhere must see the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: tuple[int, ...] = Field(min_length=1, max_length=64, description="Token ids.")
    likely: tuple[int, ...] = Field(min_length=1, max_length=16, description="The likeliest next tokens' ids.")
    logprobs: tuple[float, ...] = Field(min_length=1, max_length=16, description="Theirs, in the same order.")
    spread: float = Field(
        ge=0, description="How far these move, in the mean, where every layer rounds as coarsely as bfloat16."
    )


class AdapterManifest(BaseModel):
    """Everything that identifies a trained adapter. Its hash is the adapter's id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    kind: Literal["lora"] = "lora"
    base_model: str
    base_fingerprint: str
    chat_template_sha256: str | None
    rank: int = Field(ge=1, le=512)
    alpha: float = Field(gt=0)
    target_modules: tuple[str, ...]
    job_id: str
    step: int = Field(ge=0)
    files: tuple[ManifestFile, ...]
    canary: Canary | None = Field(
        default=None, exclude_if=lambda canary: canary is None, description="Absent where nobody could measure it."
    )
    """Left out where there is none: ids of adapters without one are hashes of manifests that never knew the field."""


class CheckpointManifest(BaseModel):
    """A resumable training state. Written to storage after its files, registered after that."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    job_id: str
    epoch: int = Field(ge=1, description="Lease epoch under which it was written.")
    step: int = Field(ge=1, description="Optimizer steps done.")
    trained_tokens: int = Field(ge=0)
    files: tuple[ManifestFile, ...]


def canonical_json(model: BaseModel) -> bytes:
    """The bytes that are stored and hashed: sorted keys, no spaces, UTF-8."""
    return json.dumps(model.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def adapter_id_of(manifest: AdapterManifest) -> AdapterId:
    return AdapterId(hashlib.sha256(canonical_json(manifest)).hexdigest())
