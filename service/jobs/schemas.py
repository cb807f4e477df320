"""Training jobs as the public API takes and shows them: OpenAI's shapes, with our fields added as optional ones."""

import re
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt

from service.contracts.job import Hyperparameters
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
    if not names or not all(isinstance(name, str) and MODULE_NAME.fullmatch(name) for name in names):
        raise ValueError("give 'all-linear' or a list with names of linear modules, such as ['q_proj', 'v_proj']")
    return names


Modules = Literal["all-linear"] | tuple[str, ...]


class RequestedHyperparameters(Body):
    """The first three are OpenAI's; the others are ours. Each may be "auto", and is when absent."""

    n_epochs: Auto[Annotated[StrictInt, Field(ge=1, le=50)]] = None
    batch_size: Auto[Annotated[StrictInt, Field(ge=1, le=256)]] = None
    learning_rate_multiplier: Auto[Annotated[Finite, Field(gt=0)]] = None
    learning_rate: Auto[Annotated[Finite, Field(gt=0, le=1)]] = None
    lora_rank: Auto[Annotated[StrictInt, Field(ge=1, le=64)]] = None
    lora_alpha: Auto[Annotated[Finite, Field(gt=0, le=1024)]] = None
    target_modules: Annotated[Auto[Modules], BeforeValidator(_check_modules)] = None
    warmup_ratio: Auto[Annotated[Finite, Field(ge=0, le=1)]] = None
    lr_scheduler: Auto[Literal["linear", "cosine", "constant"]] = None
    weight_decay: Auto[Annotated[Finite, Field(ge=0, le=1)]] = None
    max_grad_norm: Auto[Annotated[Finite, Field(gt=0)]] = None
    max_seq_length: Auto[Annotated[StrictInt, Field(ge=8)]] = None


class SupervisedMethod(Body):
    hyperparameters: RequestedHyperparameters = RequestedHyperparameters()


class RequestedMethod(Body):
    """`dpo` and `reinforcement` are taken apart by nobody yet; creation refuses them by name."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: SupervisedMethod | None = None
    dpo: dict[str, Any] | None = None
    reinforcement: dict[str, Any] | None = None


Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class CreateJob(Body):
    model: Annotated[str, Field(min_length=1, max_length=256)]
    training_file: Annotated[str, Field(min_length=1, max_length=128)]
    validation_file: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    suffix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    seed: Annotated[int, Field(strict=True, ge=0, le=2147483647)] | None = None
    metadata: Metadata | None = None
    integrations: Annotated[list[dict[str, Any]], Field(max_length=5)] | None = None
    hyperparameters: RequestedHyperparameters | None = None
    method: RequestedMethod | None = None


class JobError(BaseModel):
    code: str
    message: str
    param: str | None = None


class BasicHyperparameters(BaseModel):
    """OpenAI's three, resolved."""

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float


class ResolvedSupervised(BaseModel):
    hyperparameters: Hyperparameters


class ResolvedMethod(BaseModel):
    type: Literal["supervised"] = "supervised"
    supervised: ResolvedSupervised


class JobObject(Item):
    """`phase` and `hyperparameter_rules` are ours: what the job is doing, and who or what chose each value."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None = None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: str
    phase: str
    error: JobError | None
    training_file: str
    validation_file: str | None
    result_files: list[str] = []
    trained_tokens: int | None
    seed: int
    hyperparameters: BasicHyperparameters
    method: ResolvedMethod
    hyperparameter_rules: dict[str, str]
    integrations: list[dict[str, Any]] | None
    metadata: dict[str, str] | None
    user_provided_suffix: str | None


class EventObject(Item):
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any]
