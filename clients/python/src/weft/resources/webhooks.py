"""`client.webhooks`: the `openai` package's, which reads Weft's own events too."""

import json
from typing import Any, cast

from openai.resources.webhooks import AsyncWebhooks as OpenAIAsyncWebhooks
from openai.resources.webhooks import Webhooks as OpenAIWebhooks

from weft.stock import HeadersLike, construct_type
from weft.types.webhook_events import KINDS, OtherWebhookEvent, WebhookEvent


class Webhooks(OpenAIWebhooks):
    """As `openai`'s; `unwrap` knows all of Weft's events."""

    def unwrap(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, payload: str | bytes, headers: HeadersLike, *, secret: str | None = None
    ) -> WebhookEvent:
        """The event in a request that an endpoint has received, once its signature is seen to be the service's.

        Raises InvalidWebhookSignatureError. `secret` is the endpoint's, without it the client's `webhook_secret`.

            >>> event = client.webhooks.unwrap(request.body, request.headers, secret=signing_secret)
            >>> if event.type == "adapter.promoted":
            ...     print(f"{event.data.adapter}@{event.data.alias} is v{event.data.version}")
            support-bot@prod is v2
        """
        self.verify_signature(payload=payload, headers=headers, secret=secret or _known(self._client.webhook_secret))
        return _event(payload)


class AsyncWebhooks(OpenAIAsyncWebhooks):
    """As Webhooks; `unwrap` is not awaited."""

    def unwrap(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, payload: str | bytes, headers: HeadersLike, *, secret: str | None = None
    ) -> WebhookEvent:
        self.verify_signature(payload=payload, headers=headers, secret=secret or _known(self._client.webhook_secret))
        return _event(payload)


def _known(secret: str | None) -> str:
    if secret is None:
        raise ValueError("there is no webhook secret: set WEFT_WEBHOOK_SECRET or pass secret=")
    return secret


def _event(payload: str | bytes) -> WebhookEvent:
    value: Any = json.loads(payload)
    return cast(WebhookEvent, construct_type(type_=KINDS.get(value.get("type"), OtherWebhookEvent), value=value))
