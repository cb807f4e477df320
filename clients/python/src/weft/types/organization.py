"""Projects, their keys and limits, and reports of usage and costs."""

from typing import Generic, Literal, TypeVar

from openai import BaseModel


class Project(BaseModel):
    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: int | None = None
    status: Literal["active", "archived"] | str


class RateLimit(BaseModel):
    """What a project may do at once; None is no limit."""

    id: str
    object: Literal["project.rate_limit"] = "project.rate_limit"
    model: str
    max_requests_per_1_minute: int | None = None
    max_tokens_per_1_minute: int | None = None
    max_management_requests_per_1_minute: int | None = None
    max_concurrent_jobs: int | None = None
    max_queued_jobs: int | None = None
    max_concurrent_requests: int | None = None
    max_storage_bytes: int | None = None


class ServiceAccount(BaseModel):
    id: str
    name: str
    created_at: int
    role: str


class KeyOwner(BaseModel):
    type: str
    service_account: ServiceAccount | None = None


class Key(BaseModel):
    """A project's key. Its value is shown once, where it was made."""

    id: str
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    created_at: int
    last_used_at: int | None = None
    expires_at: int | None = None
    scopes: list[str]
    owner: KeyOwner | None = None
    owner_project_access: Literal["active", "inactive"] | str | None = None


class NewKey(Key):
    value: str


class KeyDeleted(BaseModel):
    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: bool


class CompletionsUsage(BaseModel):
    object: Literal["organization.usage.completions.result"] = "organization.usage.completions.result"
    project_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None
    input_tokens: int
    output_tokens: int
    num_model_requests: int
    user_id: str | None = None
    batch: bool | None = None


class FineTuningUsage(BaseModel):
    object: Literal["organization.usage.fine_tuning.result"] = "organization.usage.fine_tuning.result"
    project_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None
    trained_tokens: int
    num_jobs: int


class StorageUsage(BaseModel):
    object: Literal["organization.usage.storage.result"] = "organization.usage.storage.result"
    project_id: str | None = None
    average_bytes: int
    byte_seconds: float


class Amount(BaseModel):
    value: float
    currency: str


class Cost(BaseModel):
    object: Literal["organization.costs.result"] = "organization.costs.result"
    amount: Amount
    line_item: str | None = None
    project_id: str | None = None
    quantity: float | None = None
    quantity_unit: str | None = None


ResultT = TypeVar("ResultT")


class UsageBucket(BaseModel, Generic[ResultT]):
    """What happened between two moments."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[ResultT]
