"""Messages between a trainer's agent and the service, under `/internal/leases`. Bearer: the worker token.

| call | request | answer |
|---|---|---|
| POST /internal/leases | ClaimRequest | 200 Lease, 204 when there is nothing to do |
| POST /internal/leases/{job}/renew | RenewRequest | Control |
| POST /internal/leases/{job}/report | Report | Control |
| POST /internal/leases/{job}/uploads | UploadRequest | UploadTargets |
| POST /internal/leases/{job}/checkpoints | CheckpointDone | Control |
| POST /internal/leases/{job}/checkpoint-models | CheckpointModel | Control |
| POST /internal/leases/{job}/finish | Finish | Finished |

Each write carries the lease's epoch; a stale one changes nothing and is answered 409 with code `lease_lost`.
Every call may be repeated: events are unique by id, checkpoints by step, a finish of the same epoch by its outcome.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.contracts.job import FileRef, JobSpec, Phase, Want
from service.contracts.manifest import AdapterManifest, CheckpointManifest, ManifestFile


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClaimRequest(Message):
    worker: str = Field(min_length=1, max_length=128, description="Stable name of the agent, for people.")
    base_model: str
    base_fingerprint: str
    wait_seconds: float = Field(default=0, ge=0, le=30, description="Long poll: answer 204 only after so long.")


class CheckpointRef(Message):
    manifest: CheckpointManifest
    urls: dict[str, str] = Field(description="Presigned GET for each file of the manifest, by path.")


class AdapterRef(Message):
    """A stored adapter in PEFT's format."""

    manifest: AdapterManifest
    urls: dict[str, str] = Field(description="Presigned GET for each file of the manifest, by path.")


class Lease(Message):
    spec: JobSpec
    epoch: int = Field(ge=1)
    ttl_seconds: float = Field(gt=0, description="From the moment the service answered.")
    renew_seconds: float = Field(gt=0)
    training_file: FileRef
    validation_file: FileRef | None
    checkpoint: CheckpointRef | None = Field(description="Resume from here; null means start from step 0.")
    start_adapter: AdapterRef | None = Field(
        default=None, description="The adapter of `spec.start_from`, for a start at step 0."
    )


class RenewRequest(Message):
    epoch: int


class Control(Message):
    want: Want
    ttl_seconds: float


class Event(Message):
    """One line of the job's history. Repeating an id replaces its data, so a replayed step shows once."""

    id: str = Field(pattern=r"^ftevent-[A-Za-z0-9-]{1,64}$")
    level: Literal["info", "warn", "error"] = "info"
    type: Literal["message", "metrics"] = "message"
    message: str = Field(max_length=2000)
    data: dict[str, Any] = {}


class Report(Message):
    epoch: int
    phase: Phase
    step: int = Field(ge=0)
    total_steps: int = Field(ge=0)
    trained_tokens: int = Field(ge=0)
    events: tuple[Event, ...] = ()


class UploadRequest(Message):
    epoch: int
    kind: Literal["checkpoint", "adapter"]
    checkpoint: CheckpointManifest | None = None
    adapter: AdapterManifest | None = None


class UploadTargets(Message):
    """Presigned PUT for each file of the manifest and for `manifest.json`, by path. Upload `manifest.json` last."""

    urls: dict[str, str]


class CheckpointDone(Message):
    epoch: int
    manifest: CheckpointManifest


class CheckpointMetrics(Message):
    """What is known of a model at one step, in OpenAI's words; null is what the job does not measure."""

    step: int = Field(ge=1)
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    full_valid_mean_kl: float | None = Field(
        default=None, description="Mean KL divergence from the base at validation labels, nats: what it forgets."
    )


class CheckpointModel(Message):
    """A stored adapter of a running job that can be used as a model. Not what a job resumes from."""

    epoch: int
    adapter: AdapterManifest
    metrics: CheckpointMetrics


class JobFailure(Message):
    code: str = Field(max_length=64, description="For instance invalid_training_file, loss_diverged, out_of_memory.")
    message: str = Field(max_length=2000)
    param: str | None = None


class Finish(Message):
    """How a leased job ended: `adapter` comes with succeeded, `failure` with failed, neither with the others."""

    epoch: int
    outcome: Literal["succeeded", "failed", "cancelled", "paused", "released"]
    trained_tokens: int = Field(ge=0)
    step: int = Field(ge=0)
    adapter: AdapterManifest | None = None
    failure: JobFailure | None = None
    events: tuple[Event, ...] = ()


class Finished(Message):
    status: str
    fine_tuned_model: str | None


__all__ = [
    "AdapterRef",
    "CheckpointDone",
    "CheckpointMetrics",
    "CheckpointModel",
    "CheckpointRef",
    "ClaimRequest",
    "Control",
    "Event",
    "Finish",
    "Finished",
    "JobFailure",
    "Lease",
    "ManifestFile",
    "Message",
    "RenewRequest",
    "Report",
    "UploadRequest",
    "UploadTargets",
]
