"""What `client.webhooks.unwrap` makes of what an endpoint receives: OpenAI's events as theirs, Weft's own, and others.

A field beside `data.id` may be missing: the sample that a test of an endpoint sends has only that.
"""

from typing import Any, Literal, get_args

from openai import BaseModel
from openai.types.webhooks import UnwrapWebhookEvent

from weft.types.aliases import Shadow, Share


class CheckpointData(BaseModel):
    id: str
    fine_tuning_job_id: str | None = None
    fine_tuned_model_checkpoint: str | None = None
    """What to give as the model of a request."""
    step_number: int | None = None


class AliasData(BaseModel):
    """Of an alias as it is after the change. `id` is the adapter's."""

    id: str
    adapter: str | None = None
    alias: str | None = None
    version: int | None = None
    previous_version: int | None = None
    revision: int | None = None
    traffic: list[Share] | None = None
    shadow: Shadow | None = None
    cause: Literal["manual", "evaluation", "automatic"] | str | None = None
    evaluation_id: str | None = None


class Event(BaseModel):
    id: str
    """The same in every attempt to deliver it."""
    object: Literal["event"] = "event"
    created_at: int


class CheckpointCreatedWebhookEvent(Event):
    """A running job has a model that can be used."""

    type: Literal["checkpoint.created"]
    data: CheckpointData


class AdapterPromotedWebhookEvent(Event):
    """An alias stands for another version."""

    type: Literal["adapter.promoted"]
    data: AliasData


class AdapterPromotionRefusedWebhookEvent(Event):
    """A job's version was not good enough for the alias that it was meant for."""

    type: Literal["adapter.promotion_refused"]
    data: AliasData


class AdapterRolledBackWebhookEvent(Event):
    """An alias went back to a version before, by hand or because too many requests failed."""

    type: Literal["adapter.rolled_back"]
    data: AliasData


class AdapterAliasUpdatedWebhookEvent(Event):
    """An alias stands for the same version, and its requests are split, copied or watched in another way."""

    type: Literal["adapter.alias.updated"]
    data: AliasData


class AdapterAliasDeletedWebhookEvent(Event):
    type: Literal["adapter.alias.deleted"]
    data: AliasData


class OtherWebhookEvent(Event):
    """Of a type that is newer than this client."""

    type: str
    data: dict[str, Any]


WeftWebhookEvent = (
    CheckpointCreatedWebhookEvent
    | AdapterPromotedWebhookEvent
    | AdapterPromotionRefusedWebhookEvent
    | AdapterRolledBackWebhookEvent
    | AdapterAliasUpdatedWebhookEvent
    | AdapterAliasDeletedWebhookEvent
)
WebhookEvent = UnwrapWebhookEvent | WeftWebhookEvent | OtherWebhookEvent

_UNION, *_ = get_args(UnwrapWebhookEvent)
KINDS: dict[str, type[BaseModel]] = {
    kind: event
    for event in (*get_args(_UNION), *get_args(WeftWebhookEvent))
    for kind in get_args(event.model_fields["type"].annotation)
}
"""By type, which alone says what an event is: the `openai` package takes one that it does not know for another."""
