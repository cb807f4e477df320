"""Fine-tuning jobs: the `openai` package's objects with the fields that Weft adds, and what a job may be asked for."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Required, TypedDict

from openai import BaseModel, Omit
from openai.types.fine_tuning import FineTuningJob as OpenAIJob
from openai.types.fine_tuning import FineTuningJobEvent, job_create_params
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from openai.types.fine_tuning.jobs.fine_tuning_job_checkpoint import Metrics

from weft.options import Extras
from weft.types.evaluations import GraderParam

Status = Literal["validating_files", "queued", "running", "pausing", "paused", "succeeded", "failed", "cancelled"] | str
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})


class ResolvedEarlyStopping(BaseModel):
    patience: int
    min_delta: float


class ResolvedHyperparameters(BaseModel):
    """What a job is trained with; nothing is "auto" any more."""

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    learning_rate: float
    lora_rank: int
    lora_alpha: float
    target_modules: Literal["all-linear"] | list[str] | str
    warmup_ratio: float
    lr_scheduler: Literal["linear", "cosine", "constant"] | str
    weight_decay: float
    max_grad_norm: float
    max_seq_length: int
    packing: bool
    early_stopping: ResolvedEarlyStopping | None = None
    """None trains every epoch."""
    beta: float | None = None
    """Of dpo alone."""


class ResolvedSettings(BaseModel):
    hyperparameters: ResolvedHyperparameters


class ResolvedMethod(BaseModel):
    type: Literal["supervised", "dpo"] | str
    supervised: ResolvedSettings | None = None
    dpo: ResolvedSettings | None = None


class JobEvaluation(BaseModel):
    file_id: str | None = None
    grader: dict[str, Any]


class JobPromotion(BaseModel):
    """What becomes of the model when the job has succeeded."""

    adapter: str | None = None
    alias: str
    evaluation: JobEvaluation
    min_score: float | None = None
    must_beat_current: bool


class FineTuningJob(OpenAIJob):
    """A job as `openai` knows it, and where it stands here."""

    status: Status  # pyright: ignore[reportIncompatibleVariableOverride]
    method: ResolvedMethod | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
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
    on_success: JobPromotion | None = None

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL


class JobEvent(FineTuningJobEvent):
    """Something that happened to a job. `data` of a `metrics` event has `step`, `train_loss` and so on."""

    level: Literal["info", "warn", "error"] | str  # pyright: ignore[reportIncompatibleVariableOverride]
    type: Literal["message", "metrics"] | str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    data: dict[str, Any] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]


class CheckpointMetrics(Metrics):
    full_valid_mean_kl: float | None = None
    """How far its answers to the validation file have moved from the base's: what it forgets."""


class JobCheckpoint(FineTuningJobCheckpoint):
    """A model of one of a job's steps, which can be used at once."""

    metrics: CheckpointMetrics  # pyright: ignore[reportIncompatibleVariableOverride]


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
    """How the new version is judged: without `file_id` on the job's validation file, without `grader` by its loss."""

    file_id: str
    grader: GraderParam


class OnSuccess(TypedDict, total=False):
    """What becomes of the model when the job has succeeded."""

    adapter: str
    alias: Required[str]
    evaluation: PromotionEvaluation
    min_score: float
    must_beat_current: bool
    """Whether it must be better than the version that the alias stands for; it must where this is left out."""


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
    method: ResolvedMethod
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
