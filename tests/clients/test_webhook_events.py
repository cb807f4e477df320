"""What an endpoint receives, read by `client.webhooks.unwrap`: every event of the service has a type of its own."""

import json
from typing import Any, get_args

import openai
import pytest

from service.settings import ServiceSettings
from service.webhooks.outbox import EVENT_TYPES
from tests.clients.conftest import SECRET, Received, Tenant
from tests.service.webhooks.conftest import Receiver, receiver
from weft import AsyncWeft, Weft
from weft.types import (
    AdapterPromotedWebhookEvent,
    AdapterRolledBackWebhookEvent,
    CheckpointCreatedWebhookEvent,
    OtherWebhookEvent,
)
from weft.types.webhook_events import KINDS, WeftWebhookEvent

__all__ = ["receiver"]
CLIENTS = pytest.mark.parametrize("client", [Weft(api_key="none"), AsyncWeft(api_key="none")], ids=["sync", "async"])


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    return service_settings.model_copy(update={"webhooks_to_private_networks": True})


def test_samples_of_all_events_are_read(tenant: Tenant, receiver: Receiver) -> None:
    endpoints = tenant.client.webhook_endpoints
    types = endpoints.event_types()
    assert types == EVENT_TYPES
    endpoint = endpoints.create(name="all", url=receiver.url, event_types=types)
    for kind in types:
        assert endpoints.test(endpoint.id, event_type=kind).success
    for kind, (headers, body) in zip(types, receiver.heard, strict=True):
        event = tenant.client.webhooks.unwrap(body, headers, secret=endpoint.signing_secret)
        assert (type(event), event.type, event.data.id) == (KINDS[kind], kind, "sample")
        if isinstance(event, get_args(WeftWebhookEvent)):
            assert all(value is None for name, value in event.data if name != "id")


@CLIENTS
@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("adapter.promoted", {"adapter": "bot", "alias": "prod", "version": 2}, AdapterPromotedWebhookEvent),
        ("adapter.rolled_back", {"version": 1, "cause": "automatic"}, AdapterRolledBackWebhookEvent),
        ("checkpoint.created", {"fine_tuned_model_checkpoint": "m", "step_number": 4}, CheckpointCreatedWebhookEvent),
        ("fine_tuning.job.succeeded", {}, openai.types.webhooks.FineTuningJobSucceededWebhookEvent),
        ("batch.completed", {}, openai.types.webhooks.BatchCompletedWebhookEvent),
    ],
)
def test_an_event_has_its_own_type(client: Any, kind: str, data: dict[str, Any], expected: type) -> None:
    received = Received.of(kind, {"id": "x", **data})
    event = client.webhooks.unwrap(received.body, received.headers, secret=SECRET)
    assert type(event) is expected
    assert {name: getattr(event.data, name) for name in data} == data


@CLIENTS
def test_an_event_of_a_later_service_is_kept_as_it_is(client: Any) -> None:
    received = Received.of("adapter.melted", {"id": "x", "degrees": 900})
    event = client.webhooks.unwrap(received.body.decode(), received.headers, secret=SECRET)
    assert type(event) is OtherWebhookEvent
    assert (event.type, event.data) == ("adapter.melted", {"id": "x", "degrees": 900})


@CLIENTS
def test_an_event_of_somebody_else_is_refused(client: Any) -> None:
    received = Received.of("adapter.promoted", {"id": "x"})
    forged = json.dumps({"type": "adapter.promoted", "data": {"id": "y"}})
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(forged, received.headers, secret=SECRET)
    with pytest.raises(ValueError, match="WEFT_WEBHOOK_SECRET"):
        client.webhooks.unwrap(received.body, received.headers)


def test_the_clients_own_secret_is_used() -> None:
    received = Received.of("adapter.promoted", {"id": "x"})
    client = Weft(api_key="none", webhook_secret=SECRET)
    assert client.webhooks.unwrap(received.body, received.headers).type == "adapter.promoted"
