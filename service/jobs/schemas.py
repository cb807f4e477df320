"""Training jobs as the public API takes and shows them: OpenAI's shapes, with our fields added as optional ones."""

import re
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from service.contracts.job import EarlyStopping, Hyperparameters
from service.contracts.servable import MAX_RANK, MAX_SCALE, MAX_TARGETS
from service.contracts.worker import CheckpointMetrics
from service.jobs.graders import OnSuccess
from service.listing import Item


class Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _auto_is_none(value: object) -> object:
    return None if value == "auto" else value


T = TypeVar("T")
Auto = Annotated[T | None, BeforeValidator(_auto_is_none)]
"""A field that takes a value or "auto"; None stands for "auto" from here on."""

Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
MODULE_NAME = re.compile(r"[A-Za-z0-9_.]{1,128}")


def _check_modules(value: Any) -> Any:
    if value in (None, "auto", "all-linear"):
        return value
    names = cast("list[object]", value) if isinstance(value, list) else []
    if not 0 < len(names) <= MAX_TARGETS or not all(
        isinstance(name, str) and MODULE_NAME.fullmatch(name) for name in names
    ):
        raise ValueError("give 'all-linear' or a list with names of linear modules, such as ['q_proj', 'v_proj']")
    return names


def _check_early_stopping(value: Any) -> Any:
    if value in (None, "auto") or isinstance(value, bool | EarlyStopping):
        return value
    try:
        return EarlyStopping.model_validate(value, strict=True)
    except ValidationError:
        example = '{"patience": 2, "min_delta": 0.005}'
        raise ValueError(
            f"give true, false, 'auto' or an object such as {example}, patience 1 to 100, min_delta 0 to below 1"
        ) from None


Modules = Literal["all-linear"] | tuple[str, ...]


def _may_be_auto(schema: dict[str, Any]) -> None:
    for field in schema["properties"].values():
        field["anyOf"].append({"const": "auto", "type": "string"})


class RequestedHyperparameters(Body):
    """The first three and `beta` are OpenAI's; the others are ours. Each may be "auto", and is when absent."""

    model_config = ConfigDict(json_schema_extra=_may_be_auto)

    n_epochs: Auto[Annotated[StrictInt, Field(ge=1, le=50)]] = None
    batch_size: Auto[Annotated[StrictInt, Field(ge=1, le=256)]] = None
    learning_rate_multiplier: Auto[Annotated[Finite, Field(gt=0)]] = None
    learning_rate: Auto[Annotated[Finite, Field(gt=0, le=1)]] = None
    lora_rank: Auto[Annotated[StrictInt, Field(ge=1, le=MAX_RANK)]] = None
    lora_alpha: Auto[Annotated[Finite, Field(gt=0, le=MAX_SCALE * MAX_RANK)]] = None
    target_modules: Annotated[Auto[Modules], BeforeValidator(_check_modules)] = None
    warmup_ratio: Auto[Annotated[Finite, Field(ge=0, le=1)]] = None
    lr_scheduler: Auto[Literal["linear", "cosine", "constant"]] = None
    weight_decay: Auto[Annotated[Finite, Field(ge=0, le=1)]] = None
    max_grad_norm: Auto[Annotated[Finite, Field(gt=0)]] = None
    max_seq_length: Auto[Annotated[StrictInt, Field(ge=8)]] = None
    packing: Auto[StrictBool] = None
    early_stopping: Annotated[Auto[StrictBool | EarlyStopping], BeforeValidator(_check_early_stopping)] = None
    beta: Auto[Annotated[Finite, Field(gt=0, le=2)]] = None

    def shown(self) -> dict[str, Any]:
        """As it was asked for, with "auto" for what is to be chosen yet."""
        return {name: "auto" if value is None else value for name, value in self.model_dump(mode="json").items()}


class MethodSettings(Body):
    hyperparameters: RequestedHyperparameters = RequestedHyperparameters()


class RequestedMethod(Body):
    """`reinforcement` is taken apart by nobody; creation refuses it by name."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: MethodSettings | None = None
    dpo: MethodSettings | None = None
    reinforcement: dict[str, Any] | None = None


Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


IntegrationText = Annotated[str, Field(min_length=1, max_length=128)]


class WandbSettings(Body):
    project: IntegrationText
    name: IntegrationText | None = None
    entity: IntegrationText | None = None
    tags: Annotated[list[IntegrationText], Field(max_length=50)] | None = None


class Integration(Body):
    """Taken and shown so that working code goes on working; nothing is sent anywhere."""

    type: Literal["wandb"]
    wandb: WandbSettings

    def recorded(self) -> dict[str, Any]:
        """As the job shows it. There never is a run, and OpenAI's clients look for its id."""
        return {"type": self.type, "wandb": {**self.wandb.model_dump(), "run_id": None}}


class CreateJob(Body):
    """Ours are: `dry_run`, with which everything is checked and an estimate given, and no job made; `adapter`, the
    registered adapter whose next version the finished job's model becomes, made where there is none yet; `on_success`,
    the alias that this version takes over if it proves better.
    """

    model: Annotated[str, Field(min_length=1, max_length=256)]
    training_file: Annotated[str, Field(min_length=1, max_length=128)]
    validation_file: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(strict=True, ge=0, le=2147483647)] | None = None
    metadata: Metadata | None = None
    integrations: Annotated[list[Integration], Field(max_length=5)] | None = None
    hyperparameters: RequestedHyperparameters | None = None
    method: RequestedMethod | None = None
    adapter: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    on_success: OnSuccess | None = None
    dry_run: StrictBool = False

    @property
    def destination(self) -> str | None:
        """The registered adapter, wherever it was named."""
        return self.adapter or (self.on_success.adapter if self.on_success else None)


class JobError(BaseModel):
    code: str
    message: str
    param: str | None = None


class BasicHyperparameters(BaseModel):
    """OpenAI's three, resolved; "auto" in a job that still waits for its files."""

    n_epochs: int | Literal["auto"]
    batch_size: int | Literal["auto"]
    learning_rate_multiplier: float | Literal["auto"]


class NoHyperparameters(BaseModel):
    """OpenAI shows them at the top level of supervised jobs only, but its clients' types require an object there."""


class ShownSettings(BaseModel):
    hyperparameters: Hyperparameters | dict[str, Any] = Field(
        description="Resolved; in a job that still waits for its files as they were asked for."
    )


class SupervisedMethod(BaseModel):
    type: Literal["supervised"] = "supervised"
    supervised: ShownSettings


class DpoMethod(BaseModel):
    type: Literal["dpo"] = "dpo"
    dpo: ShownSettings


class JobObject(Item):
    """Ours are: `phase`, what the job is doing; `hyperparameter_rules`, who or what chose each value; `queue_position`
    among the project's own jobs for the base; `blocked_by`, what an unfinished job waits for; `adapter`, the registered
    adapter that it makes a version of; `on_success`, the alias that the version may take over.
    """

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    queue_position: int | None
    blocked_by: Literal["file", "paused", "retry_delay", "base_unavailable", "tenant_limit", "capacity"] | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: str
    phase: str
    error: JobError | None
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    hyperparameters: BasicHyperparameters | NoHyperparameters
    method: SupervisedMethod | DpoMethod
    hyperparameter_rules: dict[str, str]
    integrations: list[dict[str, Any]] | None
    metadata: dict[str, str] | None
    user_provided_suffix: str | None
    adapter: str | None
    on_success: OnSuccess | None


class EventObject(Item):
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any]


class CheckpointObject(Item):
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics


class Interval(BaseModel):
    """A value that nine of ten jobs stay below `high` of, and one of ten below `low`."""

    low: float
    median: float
    high: float


class EstimatedCost(BaseModel):
    amount: float
    currency: str


class EstimateObject(BaseModel):
    object: Literal["fine_tuning.estimate"] = "fine_tuning.estimate"
    model: str
    tokens: int = Field(description="Of all epochs, prompts included.")
    trained_tokens: int = Field(description="Of these, what is learned and billed.")
    steps: int
    cost: EstimatedCost
    seconds: Interval | None = Field(description="At work; null where too few jobs of this base have been seen.")
    adapter_memory_bytes: int | None = Field(
        description="What the job takes of a trainer's memory beside activations; null where it is not known."
    )
    method: SupervisedMethod | DpoMethod
    hyperparameter_rules: dict[str, str]
    warnings: list[str]


class ImportJob(Body):
    """`job` is a job object as OpenAI's API gives it; the files are ids of this service."""

    job: dict[str, Any]
    training_file: Annotated[str, Field(min_length=1, max_length=128)]
    validation_file: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None


class LeftOut(BaseModel):
    field: str
    reason: str


class ImportObject(BaseModel):
    object: Literal["fine_tuning.import"] = "fine_tuning.import"
    job: JobObject
    not_carried_over: list[LeftOut]
