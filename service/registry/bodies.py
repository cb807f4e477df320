"""What the public API takes about registered adapters."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

from service.adapters.aliases import ALIAS_PATTERN, DEFAULT_ALIAS
from service.jobs.schemas import Metadata

LARGEST_NUMBER = 999_999_999


class Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Id = Annotated[str, Field(min_length=1, max_length=256)]
Number = Annotated[StrictInt, Field(ge=1, le=LARGEST_NUMBER)]
Description = Annotated[str, Field(max_length=1024)]
Reason = Annotated[str, Field(max_length=512)]


class JobSource(Body):
    """A finished job's model."""

    type: Literal["job"]
    job_id: Id


class CheckpointSource(Body):
    """A model of one of a job's steps, also while the job runs."""

    type: Literal["checkpoint"]
    checkpoint_id: Id


class ModelSource(Body):
    """A fine-tuned model by any of its names."""

    type: Literal["model"]
    model: Id


VersionSource = Annotated[JobSource | CheckpointSource | ModelSource, Field(discriminator="type")]


class CreateAdapter(Body):
    """With `from` the adapter has its first version at once."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: Description | None = None
    metadata: Metadata | None = None
    origin: Annotated[VersionSource | None, Field(alias="from")] = None


class ChangeAdapter(Body):
    """What is absent stays; null empties."""

    description: Description | None = None
    metadata: Metadata | None = None

    def values(self) -> dict[str, Any]:
        columns = {"description": self.description, "adapter_metadata": self.metadata or {}}
        given = {"description": "description", "metadata": "adapter_metadata"}
        return {given[name]: columns[given[name]] for name in self.model_fields_set}


class AddVersion(Body):
    source: VersionSource


class Weighted(Body):
    """`weight` counts in proportion to the others."""

    version: Number
    weight: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]


class Shadowed(Body):
    """A copy of this fraction of the requests goes to that version too; its answers are dropped."""

    version: Number
    fraction: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class AutomaticRollback(Body):
    """Back to the version before, once more than `max_error_rate` of at least `min_requests` requests have failed."""

    max_error_rate: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
    min_requests: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 20
    window_seconds: Annotated[StrictInt, Field(ge=10, le=86_400)] = 300


class SetAlias(Body):
    """Without `traffic` the version gets all of it, without `shadow` nothing is copied.

    `automatic_rollback` goes on for all that the alias will stand for; absent it stays as it is, null ends it.

    `if_revision` is the alias's revision that the change is made to, 0 where there is no such alias yet.
    """

    version: Number
    traffic: Annotated[list[Weighted], Field(min_length=1, max_length=16)] | None = None
    shadow: Shadowed | None = None
    automatic_rollback: AutomaticRollback | None = None
    if_revision: Annotated[StrictInt, Field(ge=0, le=2**31 - 1)] | None = None
    reason: Reason | None = None

    @model_validator(mode="after")
    def _splits_once(self) -> "SetAlias":
        numbers = [share.version for share in self.traffic or ()]
        if len(set(numbers)) != len(numbers):
            raise ValueError("'traffic' names a version twice")
        if numbers and self.version not in numbers:
            raise ValueError("'traffic' must name 'version' too")
        if self.shadow and self.shadow.version in (numbers or [self.version]):
            raise ValueError("'shadow' names a version that gets traffic already")
        return self

    @property
    def split(self) -> dict[str, Any]:
        """Traffic, shadow and a given rollback as they are stored; traffic to one version alone is none."""
        shares = [share.model_dump() for share in self.traffic or ()]
        told = {
            "traffic": shares if len(shares) > 1 else None,
            "shadow": self.shadow.model_dump() if self.shadow else None,
        }
        if "automatic_rollback" in self.model_fields_set:
            told["automatic_rollback"] = self.automatic_rollback.model_dump() if self.automatic_rollback else None
        return told


class RollBack(Body):
    alias: Annotated[str, Field(pattern=ALIAS_PATTERN)] = DEFAULT_ALIAS
    reason: Reason | None = None
