"""Usage and cost reports as OpenAI's organization API shows them, with the meters that it lacks beside its own."""

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel


class Grouped(BaseModel):
    """What a result was grouped by; null where it was not."""

    project_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None


class CompletionsUsage(Grouped):
    object: Literal["organization.usage.completions.result"] = "organization.usage.completions.result"
    input_tokens: int
    output_tokens: int
    num_model_requests: int
    user_id: str | None = None
    batch: bool | None = None


class FineTuningUsage(Grouped):
    object: Literal["organization.usage.fine_tuning.result"] = "organization.usage.fine_tuning.result"
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


ResultT = TypeVar("ResultT", bound=BaseModel)


class Bucket(BaseModel, Generic[ResultT]):
    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[ResultT]


class Report(BaseModel, Generic[ResultT]):
    object: Literal["page"] = "page"
    data: list[Bucket[ResultT]]
    has_more: bool
    next_page: str | None
