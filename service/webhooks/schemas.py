"""Webhook endpoints and deliveries as the public API takes and shows them: OpenAI's shapes, ours added as optional."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.listing import Item
from service.webhooks.endpoints import status_of
from service.webhooks.models import DeliveryRow, EndpointRow
from service.webhooks.outbox import EVENT_TYPES


class Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _supported(event_types: list[str]) -> list[str]:
    unknown = sorted(set(event_types) - set(EVENT_TYPES))
    if unknown:
        raise ValueError(f"this service has no events of type {', '.join(unknown)}, only {', '.join(EVENT_TYPES)}")
    return sorted(set(event_types))


Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Url = Annotated[str, Field(min_length=1, max_length=2048)]
EventTypes = Annotated[
    list[Annotated[str, Field(pattern=r"^[a-z_.]{1,64}$")]],
    Field(min_length=1, max_length=64),
    AfterValidator(_supported),
]
Status = Literal["enabled", "disabled"]


class CreateEndpoint(Body):
    name: Name
    url: Url
    event_types: EventTypes


class ChangeEndpoint(Body):
    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None
    status: Status | None = None

    @property
    def changes(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class RotateSecret(Body):
    keep_old_secret_active_for_24_hours: bool = False


class TestEndpoint(Body):
    event_type: Annotated[str, Field(pattern=r"^[a-z_.]{1,64}$")]


class Endpoint(Item):
    """`status` is ours: an endpoint that answers 410 is disabled until its owner enables it again."""

    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    status: str


class EndpointWithSecret(Endpoint):
    signing_secret: str = Field(description="Shown in this answer and never again.")


class EndpointDeleted(BaseModel):
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    id: str
    deleted: Literal[True] = True


class EndpointTested(BaseModel):
    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    event_type: str
    status_code: int
    success: Literal[True] = True
    webhook_endpoint_id: str


class EventTypeList(BaseModel):
    object: Literal["list"] = "list"
    data: list[str]


class Delivery(Item):
    object: Literal["webhook_delivery"] = "webhook_delivery"
    created_at: int
    event_id: str = Field(description="Also the `webhook-id` of every attempt.")
    event_type: str
    webhook_endpoint_id: str
    status: str
    attempts: int
    last_attempt_at: int | None
    next_attempt_at: int | None
    response_status: int | None
    error: str | None
    delivered_at: int | None

    @classmethod
    def of(cls, row: DeliveryRow) -> "Delivery":
        return cls(
            id=row.id,
            created_at=int(row.created_at.timestamp()),
            event_id=row.event_id,
            event_type=row.event_type,
            webhook_endpoint_id=row.endpoint_id,
            status=row.status,
            attempts=row.attempts,
            last_attempt_at=_seconds(row.last_attempt_at),
            next_attempt_at=_seconds(row.next_attempt_at) if row.status == "pending" else None,
            response_status=row.response_status,
            error=row.error,
            delivered_at=_seconds(row.delivered_at),
        )


def endpoint_fields(row: EndpointRow, hint: str) -> dict[str, Any]:
    return {
        "id": row.id,
        "created_at": int(row.created_at.timestamp()),
        "updated_at": int(row.updated_at.timestamp()),
        "name": row.name,
        "url": row.url,
        "event_types": row.event_types,
        "signing_secret_hint": hint,
        "status": status_of(row),
    }


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
