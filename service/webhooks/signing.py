"""Signatures as Standard Webhooks defines them, with secrets that are derived and never stored.

A secret is an HMAC of the endpoint's id and the secret's version under the service's own secret: a stolen database
signs nothing. Whoever changes WEFT_SECRET changes every endpoint's secret with it.
"""

import base64
import hashlib
import hmac

from pydantic import SecretStr

from service.webhooks.models import EndpointRow

PREFIX = "whsec_"


def secret_of(service_secret: SecretStr, endpoint_id: str, version: int) -> str:
    """The secret of that version, as its owner gives it to a verifier."""
    return PREFIX + base64.b64encode(_key(service_secret, endpoint_id, version)).decode()


def hint(secret: str) -> str:
    return f"{PREFIX}…{secret[-4:]}"


def headers(
    service_secret: SecretStr,
    endpoint: EndpointRow,
    versions: tuple[int, ...],
    event_id: str,
    timestamp: int,
    body: str,
) -> dict[str, str]:
    """What goes with a body: its id, its time, and a signature under each version of the endpoint's secret."""
    signed = f"{event_id}.{timestamp}.{body}".encode()
    signatures = (
        base64.b64encode(hmac.digest(_key(service_secret, endpoint.id, version), signed, hashlib.sha256)).decode()
        for version in versions
    )
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def _key(service_secret: SecretStr, endpoint_id: str, version: int) -> bytes:
    named = f"webhook/{endpoint_id}/{version}".encode()
    return hmac.digest(service_secret.get_secret_value().encode(), named, hashlib.sha256)
