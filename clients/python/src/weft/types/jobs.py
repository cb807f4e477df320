"""Fine-tuning jobs: the `openai` package's objects with the fields that Weft adds, and what a job may be asked for."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Required, TypedDict

from openai import BaseModel, Omit
from openai.types.fine_tuning import FineTuningJob as OpenAIJob
from openai.types.fine_tuning import FineTuningJobEvent, job_create_params

from weft.options import Extras

Status = Literal["validating_files", "queued", "running", "pausing", "paused", "succeeded", "failed", "cancelled"] | str
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})


class FineTuningJob(OpenAIJob):
    """A job as `openai` knows it, and where it stands here."""

    status: Status  # pyright: ignore[reportIncompatibleVariableOverride]
    phase: str | None = None
    """What is being done just now, such as `training`."""
    queue_position: int | None = None
    blocked_by: (
        Literal["file", "paused", "retry_delay", "base_unavailable", "tenant_limit", "capacity"] | str | None
    ) = None
    hyperparameter_rules: dict[str, str] | None = None
    """Why each hyperparameter has its value."""
    user_provided_suffix: str | None = None
    adapter: str | None = None
    """The registered adapter whose next version the model becomes."""
    on_success: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL


class JobEvent(FineTuningJobEvent):
    """Something that happened to a job. `data` of a `metrics` event has `step`, `train_loss` and so on."""

    level: Literal["info", "warn", "error"] | str  # pyright: ignore[reportIncompatibleVariableOverride]
    type: Literal["message", "metrics"] | str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    data: dict[str, Any] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]


class EarlyStopping(TypedDict, total=False):
    patience: int
    min_delta: float


class Hyperparameters(TypedDict, total=False):
    """OpenAI's and Weft's own; what is left out or "auto" is chosen by a rule that the job names."""

    n_epochs: Literal["auto"] | int
    batch_size: Literal["auto"] | int
    learning_rate_multiplier: Literal["auto"] | float
    learning_rate: Literal["auto"] | float
    lora_rank: Literal["auto"] | int
    lora_alpha: Literal["auto"] | float
    target_modules: Literal["auto", "all-linear"] | list[str]
    warmup_ratio: Literal["auto"] | float
    lr_scheduler: Literal["auto", "linear", "cosine", "constant"]
    weight_decay: Literal["auto"] | float
    max_grad_norm: Literal["auto"] | float
    max_seq_length: Literal["auto"] | int
    packing: Literal["auto"] | bool
    early_stopping: Literal["auto"] | bool | EarlyStopping
    beta: Literal["auto"] | float


class MethodSettings(TypedDict, total=False):
    hyperparameters: Hyperparameters


class Method(TypedDict, total=False):
    type: Required[Literal["supervised", "dpo"]]
    supervised: MethodSettings
    dpo: MethodSettings


class PromotionEvaluation(TypedDict, total=False):
    """How the new version is judged; without `file_id` on the job's validation file."""

    file_id: str
    grader: Required[Mapping[str, object]]


class OnSuccess(TypedDict, total=False):
    """What becomes of the model when the job has succeeded."""

    adapter: str
    alias: Required[str]
    evaluation: PromotionEvaluation
    min_score: float
    must_beat_current: bool


class JobRequest(Extras, total=False):
    """What `jobs.create`, `jobs.create_and_wait` and `estimates.create` take."""

    model: Required[str]
    """A base model, a fine-tuned model or a registered adapter such as `support-bot@prod`."""
    training_file: Required[str]
    validation_file: str | Omit | None
    suffix: str | Omit | None
    seed: int | Omit | None
    metadata: Mapping[str, str] | Omit | None
    method: Method | job_create_params.Method | Omit
    hyperparameters: Hyperparameters | job_create_params.Hyperparameters | Omit
    integrations: Iterable[job_create_params.Integration] | Omit | None
    adapter: str | Omit | None
    """The registered adapter whose next version the model becomes; made where it does not exist."""
    on_success: OnSuccess | Omit | None


class EstimatedCost(BaseModel):
    amount: float
    currency: str


class Interval(BaseModel):
    low: float
    median: float
    high: float


class Estimate(BaseModel):
    """What a job would take. `seconds` is None until jobs of this base model have been measured."""

    object: Literal["fine_tuning.estimate"] = "fine_tuning.estimate"
    model: str
    tokens: int
    trained_tokens: int
    steps: int
    cost: EstimatedCost
    seconds: Interval | None
    adapter_memory_bytes: int | None
    method: dict[str, Any]
    hyperparameter_rules: dict[str, str]
    warnings: list[str]


class LeftOut(BaseModel):
    field: str
    reason: str


class JobImport(BaseModel):
    """A job made like one of OpenAI's, and what of that one has no counterpart here."""

    object: Literal["fine_tuning.import"] = "fine_tuning.import"
    job: FineTuningJob
    not_carried_over: list[LeftOut]
