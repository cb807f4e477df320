"""What a training job is, for the service that queues it and the trainer that runs it.

Statuses stay in OpenAI's words; finer state goes in `phase`. Everything "auto" is resolved before a JobSpec exists.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.contracts.servable import MAX_RANK

JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
TERMINAL: frozenset[JobStatus] = frozenset({"succeeded", "failed", "cancelled"})

ALLOWED_TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    "validating_files": frozenset({"queued", "failed", "cancelled"}),
    "queued": frozenset({"running", "paused", "failed", "cancelled"}),
    "running": frozenset({"queued", "paused", "succeeded", "failed", "cancelled"}),
    "paused": frozenset({"queued", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

Method = Literal["supervised", "dpo"]
"""Supervised learns to say what the examples say; direct preference optimization to prefer one answer over another."""

Phase = Literal["waiting", "preparing", "training", "saving", "finished"]
Want = Literal["run", "cancel", "pause"]
"""What the owner of a running job asks of its trainer."""


class EarlyStopping(BaseModel):
    """Training ends after `patience` evaluations in a row that did not lower the best validation loss enough."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patience: int = Field(default=2, ge=1, le=100, description="Evaluations.")
    min_delta: float = Field(default=0.005, ge=0, lt=1, description="Least gain that counts, as part of the best.")


class Hyperparameters(BaseModel):
    """Resolved training settings; every field has a number or a word, none is "auto".

    `learning_rate` is absolute: the base's own rate times `learning_rate_multiplier`.
    Sources of the rules: research notes on defaults; see docs/decisions/0003-auto-hyperparameters.md.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_epochs: int = Field(ge=1, le=50)
    batch_size: int = Field(ge=1, le=256)
    learning_rate_multiplier: float = Field(gt=0)
    learning_rate: float = Field(gt=0)
    lora_rank: int = Field(ge=1, le=MAX_RANK)
    lora_alpha: float = Field(gt=0)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    warmup_ratio: float = Field(ge=0, le=1)
    lr_scheduler: Literal["linear", "cosine", "constant"]
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    max_seq_length: int = Field(ge=8)
    packing: bool = Field(default=False, description="Several examples a row, none of which sees another.")
    early_stopping: EarlyStopping | None = Field(default=None, description="Null trains every epoch.")
    beta: float | None = Field(default=None, gt=0, le=2, description="Of dpo alone: how close to stay to the base.")


class FileRef(BaseModel):
    """A training file as a trainer sees it: where to read it for a while, and what it must hash to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    sha256: str
    size: int = Field(description="Bytes.")


class StartFrom(BaseModel):
    """The adapter whose weights a job begins with: same rank, alpha and targets. Its optimizer begins anew."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter_id: str = Field(pattern=r"^[0-9a-f]{64}$")
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    target_modules: tuple[str, ...]


class JobSpec(BaseModel):
    """One job, complete: two trainers given the same spec and files produce the same adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    project_id: str
    base_model: str
    base_fingerprint: str
    chat_template_sha256: str | None
    method: Method = "supervised"
    seed: int = Field(ge=0, le=2147483647)
    examples: int = Field(ge=1, description="Lines of the training file.")
    hyperparameters: Hyperparameters
    rules: dict[str, str] = Field(description="For each hyperparameter, who or what chose its value.")
    start_from: StartFrom | None = Field(default=None, description="Null starts at the base.")
