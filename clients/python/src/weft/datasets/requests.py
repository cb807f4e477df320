"""What one line of a batch's input file must be: a request to one of the endpoints that batches run over."""

import hashlib
from typing import Any, cast

from weft.datasets.lines import Example
from weft.datasets.reading import InvalidLine, parsed

ENDPOINTS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"})
MAX_REQUESTS = 50_000
MAX_CUSTOM_ID = 512


class RequestRules:
    """Of one file: no `custom_id` comes twice, and all requests go to one endpoint."""

    def __init__(self) -> None:
        self._seen: dict[bytes, int] = {}
        self._url: str | None = None

    def __call__(self, line: bytes) -> Example:
        """A good line. Raises InvalidLine."""
        value = parsed(line)
        if len(self._seen) >= MAX_REQUESTS:
            raise InvalidLine("too_many_requests", f"is beyond the {MAX_REQUESTS} requests that one batch may hold")
        self._check_custom_id(value.get("custom_id"))
        if value.get("method") != "POST":
            raise InvalidLine("invalid_method", "method: should be 'POST'")
        self._check_url(value.get("url"))
        _check_body(value.get("body"))
        return "request", value

    def _check_custom_id(self, custom_id: Any) -> None:
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
            raise InvalidLine("invalid_custom_id", f"custom_id: should be a string of 1 to {MAX_CUSTOM_ID} characters")
        digest = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
        first = self._seen.get(digest)
        if first is not None:
            raise InvalidLine("duplicate_custom_id", f"custom_id: is that of request {first} of the file")
        self._seen[digest] = len(self._seen) + 1

    def _check_url(self, url: Any) -> None:
        if not isinstance(url, str) or url not in ENDPOINTS:
            raise InvalidLine("invalid_url", f"url: should be one of {', '.join(sorted(ENDPOINTS))}")
        self._url = self._url or url
        if url != self._url:
            raise InvalidLine("mismatched_url", f"url: the requests before it go to {self._url}")


def _check_body(body: Any) -> None:
    if not isinstance(body, dict):
        raise InvalidLine("invalid_body", "body: should be a JSON object, the request's own body")
    model = cast("dict[str, Any]", body).get("model")
    if not isinstance(model, str) or not model:
        raise InvalidLine("missing_model", "body.model: should name a model")
