"""Webhook endpoints and their deliveries. What they receive is checked and read by `client.webhooks.unwrap`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from openai import BaseModel, Omit, omit
from openai.pagination import AsyncCursorPage, SyncCursorPage
from typing_extensions import Unpack

from weft.options import Extras, path
from weft.resource import AsyncResource, SyncResource
from weft.stock import cached_property
from weft.types.webhooks import (
    NewWebhookEndpoint,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEndpointDeleted,
    WebhookTest,
)

if TYPE_CHECKING:
    from weft.stock import AsyncPaginator


EVENT_TYPES = "/webhook_event_types"


class EventTypes(BaseModel):
    data: list[str]


def _names(found: EventTypes) -> tuple[str, ...]:
    return tuple(found.data)


NAMED = {"post_parser": _names}
"""As an option of the request, so that a raw response's `parse()` gives the same."""


class Deliveries(SyncResource):
    """What was sent to an endpoint in the last 30 days or is still to be."""

    def list(
        self, webhook_endpoint_id: str, *, after: str | Omit = omit, limit: int | Omit = omit, **extras: Unpack[Extras]
    ) -> SyncCursorPage[WebhookDelivery]:
        """Newest first.

        >>> [delivery.status for delivery in client.webhook_endpoints.deliveries.list(webhook_id)]
        []
        """
        where = path("/webhook_endpoints/{}/deliveries", webhook_endpoint_id)
        return self._pages(where, WebhookDelivery, extras, {"after": after, "limit": limit})

    def redeliver(self, delivery_id: str, *, webhook_endpoint_id: str, **extras: Unpack[Extras]) -> WebhookDelivery:
        """Sends an event again, under the same id."""
        where = path("/webhook_endpoints/{}/deliveries/{}/redeliver", webhook_endpoint_id, delivery_id)
        return self._do("post", where, WebhookDelivery, extras)


class AsyncDeliveries(AsyncResource):
    """As Deliveries; every method is awaited."""

    def list(
        self, webhook_endpoint_id: str, *, after: str | Omit = omit, limit: int | Omit = omit, **extras: Unpack[Extras]
    ) -> "AsyncPaginator[WebhookDelivery, AsyncCursorPage[WebhookDelivery]]":
        where = path("/webhook_endpoints/{}/deliveries", webhook_endpoint_id)
        return self._pages(where, WebhookDelivery, extras, {"after": after, "limit": limit})

    async def redeliver(
        self, delivery_id: str, *, webhook_endpoint_id: str, **extras: Unpack[Extras]
    ) -> WebhookDelivery:
        where = path("/webhook_endpoints/{}/deliveries/{}/redeliver", webhook_endpoint_id, delivery_id)
        return await self._do("post", where, WebhookDelivery, extras)


class WebhookEndpoints(SyncResource):
    """Addresses of yours that are told what happens in the project."""

    @cached_property
    def deliveries(self) -> Deliveries:
        return Deliveries(self._client)

    def create(
        self, *, name: str, url: str, event_types: Sequence[str], **extras: Unpack[Extras]
    ) -> NewWebhookEndpoint:
        """Makes an endpoint. Its signing secret is in this answer and in no later one.

        >>> endpoint = client.webhook_endpoints.create(
        ...     name="jobs", url="https://hooks.example.com/weft", event_types=["fine_tuning.job.succeeded"]
        ... )
        >>> endpoint.signing_secret.startswith("whsec_")
        True
        """
        body = {"name": name, "url": url, "event_types": event_types}
        return self._do("post", "/webhook_endpoints", NewWebhookEndpoint, extras, body)

    def list(
        self, *, after: str | Omit = omit, limit: int | Omit = omit, **extras: Unpack[Extras]
    ) -> SyncCursorPage[WebhookEndpoint]:
        """The project's endpoints, newest first."""
        return self._pages("/webhook_endpoints", WebhookEndpoint, extras, {"after": after, "limit": limit})

    def retrieve(self, webhook_endpoint_id: str, **extras: Unpack[Extras]) -> WebhookEndpoint:
        return self._one(path("/webhook_endpoints/{}", webhook_endpoint_id), WebhookEndpoint, extras)

    def update(
        self,
        webhook_endpoint_id: str,
        *,
        name: str | Omit = omit,
        url: str | Omit = omit,
        event_types: Sequence[str] | Omit = omit,
        status: Literal["enabled", "disabled"] | Omit = omit,
        **extras: Unpack[Extras],
    ) -> WebhookEndpoint:
        """Changes what is given and leaves the rest.

        >>> client.webhook_endpoints.update(webhook_id, status="disabled").status
        'disabled'
        """
        body = {"name": name, "url": url, "event_types": event_types, "status": status}
        return self._do("post", path("/webhook_endpoints/{}", webhook_endpoint_id), WebhookEndpoint, extras, body)

    def delete(self, webhook_endpoint_id: str, **extras: Unpack[Extras]) -> WebhookEndpointDeleted:
        where = path("/webhook_endpoints/{}", webhook_endpoint_id)
        return self._do("delete", where, WebhookEndpointDeleted, extras)

    def rotate_secret(
        self,
        webhook_endpoint_id: str,
        *,
        keep_old_secret_active_for_24_hours: bool = False,
        **extras: Unpack[Extras],
    ) -> NewWebhookEndpoint:
        """Makes a new signing secret; the old one can go on signing beside it for a day."""
        where = path("/webhook_endpoints/{}/rotate_secret", webhook_endpoint_id)
        body = {"keep_old_secret_active_for_24_hours": keep_old_secret_active_for_24_hours}
        return self._do("post", where, NewWebhookEndpoint, extras, body)

    def test(self, webhook_endpoint_id: str, *, event_type: str, **extras: Unpack[Extras]) -> WebhookTest:
        """Sends a sample event now, once, and says what the endpoint answered."""
        where = path("/webhook_endpoints/{}/test", webhook_endpoint_id)
        return self._do("post", where, WebhookTest, extras, {"event_type": event_type})

    def event_types(self, **extras: Unpack[Extras]) -> tuple[str, ...]:
        """The events that an endpoint can ask for.

        >>> "fine_tuning.job.succeeded" in client.webhook_endpoints.event_types()
        True
        """
        options = cast(Any, self._options(extras) | NAMED)
        return cast(Any, self._client.get(EVENT_TYPES, cast_to=EventTypes, options=options))


class AsyncWebhookEndpoints(AsyncResource):
    """As WebhookEndpoints; every method is awaited."""

    @cached_property
    def deliveries(self) -> AsyncDeliveries:
        return AsyncDeliveries(self._client)

    async def create(
        self, *, name: str, url: str, event_types: Sequence[str], **extras: Unpack[Extras]
    ) -> NewWebhookEndpoint:
        body = {"name": name, "url": url, "event_types": event_types}
        return await self._do("post", "/webhook_endpoints", NewWebhookEndpoint, extras, body)

    def list(
        self, *, after: str | Omit = omit, limit: int | Omit = omit, **extras: Unpack[Extras]
    ) -> "AsyncPaginator[WebhookEndpoint, AsyncCursorPage[WebhookEndpoint]]":
        return self._pages("/webhook_endpoints", WebhookEndpoint, extras, {"after": after, "limit": limit})

    async def retrieve(self, webhook_endpoint_id: str, **extras: Unpack[Extras]) -> WebhookEndpoint:
        return await self._one(path("/webhook_endpoints/{}", webhook_endpoint_id), WebhookEndpoint, extras)

    async def update(
        self,
        webhook_endpoint_id: str,
        *,
        name: str | Omit = omit,
        url: str | Omit = omit,
        event_types: Sequence[str] | Omit = omit,
        status: Literal["enabled", "disabled"] | Omit = omit,
        **extras: Unpack[Extras],
    ) -> WebhookEndpoint:
        body = {"name": name, "url": url, "event_types": event_types, "status": status}
        where = path("/webhook_endpoints/{}", webhook_endpoint_id)
        return await self._do("post", where, WebhookEndpoint, extras, body)

    async def delete(self, webhook_endpoint_id: str, **extras: Unpack[Extras]) -> WebhookEndpointDeleted:
        where = path("/webhook_endpoints/{}", webhook_endpoint_id)
        return await self._do("delete", where, WebhookEndpointDeleted, extras)

    async def rotate_secret(
        self,
        webhook_endpoint_id: str,
        *,
        keep_old_secret_active_for_24_hours: bool = False,
        **extras: Unpack[Extras],
    ) -> NewWebhookEndpoint:
        where = path("/webhook_endpoints/{}/rotate_secret", webhook_endpoint_id)
        body = {"keep_old_secret_active_for_24_hours": keep_old_secret_active_for_24_hours}
        return await self._do("post", where, NewWebhookEndpoint, extras, body)

    async def test(self, webhook_endpoint_id: str, *, event_type: str, **extras: Unpack[Extras]) -> WebhookTest:
        where = path("/webhook_endpoints/{}/test", webhook_endpoint_id)
        return await self._do("post", where, WebhookTest, extras, {"event_type": event_type})

    async def event_types(self, **extras: Unpack[Extras]) -> tuple[str, ...]:
        options = cast(Any, self._options(extras) | NAMED)
        return cast(Any, await self._client.get(EVENT_TYPES, cast_to=EventTypes, options=options))
