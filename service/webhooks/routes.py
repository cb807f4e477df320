"""HTTP routes of webhooks: those of OpenAI's clients, and deliveries beside them."""

from typing import Annotated

from fastapi import APIRouter, Query

from service.idempotency.route import IdempotentRoute
from service.listing import Cursor, Page, page
from service.resources import CurrentResources, Resources
from service.tenants.auth import CLAIMED, CurrentTenant, TenantTransaction
from service.webhooks import deliveries, endpoints, signing, trial
from service.webhooks.guard import check_url
from service.webhooks.models import EndpointRow
from service.webhooks.outbox import EVENT_TYPES
from service.webhooks.schemas import (
    ChangeEndpoint,
    CreateEndpoint,
    Delivery,
    Endpoint,
    EndpointDeleted,
    EndpointTested,
    EndpointWithSecret,
    EventTypeList,
    RotateSecret,
    TestEndpoint,
    endpoint_fields,
)

router = APIRouter(prefix="/v1", tags=["webhooks"], route_class=IdempotentRoute)

Limit = Annotated[int, Query(ge=1, le=100)]


def _shown(resources: Resources, row: EndpointRow) -> Endpoint:
    return Endpoint(**endpoint_fields(row, signing.hint(_secret(resources, row))))


def _shown_with_secret(resources: Resources, row: EndpointRow) -> EndpointWithSecret:
    secret = _secret(resources, row)
    return EndpointWithSecret(**endpoint_fields(row, signing.hint(secret)), signing_secret=secret)


def _secret(resources: Resources, row: EndpointRow) -> str:
    return signing.secret_of(resources.settings.secret, row.id, row.secret_version)


@router.get("/webhook_event_types")
async def list_event_types(_: CurrentTenant) -> EventTypeList:
    """The events that an endpoint can ask for. Each one's `data` has the `id` of what it is about.

    Of an adapter's aliases `data` says `adapter`, `alias`, `version`, `previous_version`, `revision`, `traffic`,
    `shadow`, and as `cause` whether the change was `manual`, was decided by an `evaluation`, whose `evaluation_id`
    follows, or was `automatic`. With `adapter.promoted` and `adapter.rolled_back` an alias stands for another version,
    with `adapter.alias.updated` its requests are split, copied or watched in another way.
    """
    return EventTypeList(data=list(EVENT_TYPES))


@router.post("/webhook_endpoints")
async def create_endpoint(
    body: CreateEndpoint, resources: CurrentResources, session: TenantTransaction
) -> EndpointWithSecret:
    """Makes an endpoint. Its signing secret is in this answer and in no later one."""
    check_url(body.url, resources.settings.webhooks_to_private_networks)
    return _shown_with_secret(resources, await endpoints.create(session, body.name, body.url, body.event_types))


@router.get("/webhook_endpoints")
async def list_endpoints(
    resources: CurrentResources, session: TenantTransaction, after: str | None = None, limit: Limit = 20
) -> Page[Endpoint]:
    """The project's endpoints, newest first."""
    rows = await endpoints.list_endpoints(session, Cursor(after=after, limit=limit))
    return page(rows, limit, lambda row: _shown(resources, row))


@router.get("/webhook_endpoints/{webhook_endpoint_id}")
async def retrieve_endpoint(
    webhook_endpoint_id: str, resources: CurrentResources, session: TenantTransaction
) -> Endpoint:
    """One endpoint."""
    return _shown(resources, await endpoints.find(session, webhook_endpoint_id))


@router.patch("/webhook_endpoints/{webhook_endpoint_id}")
@router.post("/webhook_endpoints/{webhook_endpoint_id}")
async def change_endpoint(
    webhook_endpoint_id: str, body: ChangeEndpoint, resources: CurrentResources, session: TenantTransaction
) -> Endpoint:
    """Changes what is given and leaves the rest."""
    if body.url is not None:
        check_url(body.url, resources.settings.webhooks_to_private_networks)
    return _shown(resources, await endpoints.change(session, webhook_endpoint_id, body.changes))


@router.delete("/webhook_endpoints/{webhook_endpoint_id}")
async def delete_endpoint(webhook_endpoint_id: str, session: TenantTransaction) -> EndpointDeleted:
    """Ends an endpoint and what still waits for it."""
    await endpoints.delete(session, webhook_endpoint_id)
    return EndpointDeleted(id=webhook_endpoint_id)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/rotate_secret")
async def rotate_secret(
    webhook_endpoint_id: str, resources: CurrentResources, session: TenantTransaction, body: RotateSecret | None = None
) -> EndpointWithSecret:
    """Makes a new signing secret; the old one can go on signing beside it for a day."""
    keep_old = body is not None and body.keep_old_secret_active_for_24_hours
    return _shown_with_secret(resources, await endpoints.rotate(session, webhook_endpoint_id, keep_old))


@router.post("/webhook_endpoints/{webhook_endpoint_id}/test", dependencies=[CLAIMED])
async def test_endpoint(
    webhook_endpoint_id: str, body: TestEndpoint, resources: CurrentResources, tenant: CurrentTenant
) -> EndpointTested:
    """Sends a sample event now, once, and says what the endpoint answered."""
    status = await trial.send_sample(resources, tenant.project_id, webhook_endpoint_id, body.event_type)
    return EndpointTested(event_type=body.event_type, status_code=status, webhook_endpoint_id=webhook_endpoint_id)


@router.get("/webhook_endpoints/{webhook_endpoint_id}/deliveries")
async def list_deliveries(
    webhook_endpoint_id: str, session: TenantTransaction, after: str | None = None, limit: Limit = 20
) -> Page[Delivery]:
    """What was sent in the last 30 days or is still to be, newest first."""
    endpoint = await endpoints.find(session, webhook_endpoint_id)
    rows = await deliveries.list_deliveries(session, endpoint, Cursor(after=after, limit=limit))
    return page(rows, limit, Delivery.of)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/deliveries/{webhook_delivery_id}/redeliver")
async def redeliver(webhook_endpoint_id: str, webhook_delivery_id: str, session: TenantTransaction) -> Delivery:
    """Sends an event again, under the same id."""
    endpoint = await endpoints.find(session, webhook_endpoint_id)
    return Delivery.of(await deliveries.redeliver(session, endpoint, webhook_delivery_id))
