"""Webhook endpoints and what was delivered to them."""

from typing import Literal

from openai import BaseModel


class WebhookEndpoint(BaseModel):
    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    status: Literal["enabled", "disabled"] | str


class NewWebhookEndpoint(WebhookEndpoint):
    """With its secret, which is shown only here; give it to `client.webhooks.unwrap`."""

    signing_secret: str


class WebhookEndpointDeleted(BaseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: bool


class WebhookTest(BaseModel):
    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: bool


class WebhookDelivery(BaseModel):
    """One event on its way to one endpoint, with all its attempts."""

    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    created_at: int
    event_id: str
    event_type: str
    webhook_endpoint_id: str
    status: Literal["pending", "delivered", "failed"] | str
    attempts: int
    last_attempt_at: int | None = None
    next_attempt_at: int | None = None
    response_status: int | None = None
    error: str | None = None
    delivered_at: int | None = None
