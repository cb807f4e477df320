"""Bodies of the batches routes, exactly OpenAI's."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.batches.models import BatchRow
from service.listing import Item

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class OutputExpiresAfter(BaseModel):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2592000)


class CreateBatch(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    input_file_id: str = Field(min_length=1, max_length=128)
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiresAfter | None = None


class BatchError(BaseModel):
    code: str | None = None
    message: str | None = None
    param: str | None = None
    line: int | None = None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class InputDetails(BaseModel):
    cached_tokens: int = 0


class OutputDetails(BaseModel):
    reasoning_tokens: int = 0


class BatchUsage(BaseModel):
    """Of the requests that were answered. What of it was cached or thought is not told apart."""

    input_tokens: int
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int


class Batch(Item):
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, row: BatchRow) -> "Batch":
        errors = None if row.errors is None else BatchErrors(data=[BatchError(**error) for error in row.errors])
        copied = ("id", "endpoint", "model", "input_file_id", "completion_window", "status")
        files = ("output_file_id", "error_file_id")
        moments = ("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at")
        return cls.model_validate(
            {
                **{name: getattr(row, name) for name in (*copied, *files)},
                **{name: _seconds(getattr(row, name)) for name in (*moments, "cancelled_at")},
                "created_at": int(row.created_at.timestamp()),
                "expires_at": int(row.expires_at.timestamp()),
                "errors": errors,
                "request_counts": RequestCounts(total=row.total, completed=row.completed, failed=row.failed),
                "usage": BatchUsage(
                    input_tokens=row.prompt_tokens,
                    output_tokens=row.completion_tokens,
                    total_tokens=row.prompt_tokens + row.completion_tokens,
                ),
                "metadata": row.batch_metadata,
            }
        )


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
