"""Pure-ASGI wrappers of every request: its id and timing, its catch-all, and the limits on what may be sent."""

import logging
import re
import time
from collections.abc import Awaitable, Iterable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.contracts.ids import new_request_id
from service.contracts.replica import REQUEST_ID_HEADER
from service.errors import ApiError, PayloadTooLarge, UnsupportedMedia
from service.files.forms import FORM_BYTES
from service.metrics import Metrics
from service.rendering import render, respond, unexpected

OPENAI_VERSION = (b"openai-version", b"2020-10-01")
RAW_ID_HEADER = REQUEST_ID_HEADER.encode()
CLIENT_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
PART_PATH = re.compile(r"/v1/uploads/[^/]+/parts")
UPLOAD_PATH = "/v1/files"
PROMPT_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"})

log = logging.getLogger("service.middleware")


class RequestFrame:
    """Names the request and answers for whatever nobody caught.

    The id in `scope["state"]["request_id"]` may be the client's own: good for logs, never for the ledger.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        answered = False

        # No coroutine of its own: there is one of these for each event of a stream.
        def framed(message: Message) -> Awaitable[None]:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                self._metrics.answered(scope, message["status"])
                milliseconds = round((time.perf_counter() - started) * 1000)
                named = (
                    (RAW_ID_HEADER, request_id.encode()),
                    (b"openai-processing-ms", b"%d" % milliseconds),
                    OPENAI_VERSION,
                )
                message["headers"] = [*message.get("headers", ()), *named]
            return send(message)

        try:
            await self._app(scope, receive, framed)
        except Exception:
            log.exception("%s %s failed, request %s", scope["method"], scope["path"], request_id)
            if answered:
                # The status is on its way: only a cut connection still tells the client that the answer is not whole.
                raise
            await respond(unexpected())(scope, receive, framed)
        if not answered:
            self._metrics.answered(scope, None)


class Direct:
    """What an application inside the frame needs that answers by itself, without the framework: the limit on its body,
    which is a prompt, and the rendering of what it raises. One layer instead of ten, for most of the traffic.
    """

    def __init__(self, app: ASGIApp, max_prompt_bytes: int, max_unannounced_bytes: int) -> None:
        self._app = app
        self._announced = max_prompt_bytes
        self._unannounced = min(max_prompt_bytes, max_unannounced_bytes + FORM_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["endpoint"] = self._app
        try:
            await self._app(scope, self._bounded(scope, receive), send)
        except Exception as error:
            response = await render(Request(scope), error)
            await response(scope, receive, send)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Raises ApiError where the headers are enough to refuse the body."""
        headers = scope["headers"]
        refused = _refused(headers, self._announced)
        if refused is not None:
            raise refused
        # The server takes no more of a body than was announced.
        if _announced(headers):
            return receive
        limit, taken = self._unannounced, 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise _unannounced(limit) if limit < self._announced else _too_large(limit)
            return message

        return counted


class BodyLimit:
    """Refuses encoded bodies and counts the bytes of all others; a declared length is only the first hint.

    A body of no declared length is refused at `max_unannounced_bytes` whatever the route takes: up to the route's own
    limit, every byte of what is refused in the end would be parsed, hashed and checked.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int,
        max_prompt_bytes: int,
        max_file_bytes: int,
        max_part_bytes: int,
        max_unannounced_bytes: int,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_prompt_bytes = max_prompt_bytes
        self._max_upload_bytes = max_file_bytes + FORM_BYTES
        self._max_part_bytes = max_part_bytes + FORM_BYTES
        self._max_unannounced_bytes = max_unannounced_bytes + FORM_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit(scope["method"], scope["path"])
        too_large = _too_large(limit)
        if self._max_unannounced_bytes < limit and not _announced(scope["headers"]):
            limit = self._max_unannounced_bytes
            too_large = _unannounced(limit)
        refused = _refused(scope["headers"], limit)
        if refused is not None:
            await respond(refused)(scope, receive, send)
            return
        await self._counted(limit, too_large, scope, receive, send)

    def _limit(self, method: str, path: str) -> int:
        if method == "POST" and path == UPLOAD_PATH:
            return self._max_upload_bytes
        if method == "POST" and PART_PATH.fullmatch(path):
            return self._max_part_bytes
        return self._max_prompt_bytes if path in PROMPT_PATHS else self._max_body_bytes

    async def _counted(
        self, limit: int, too_large: PayloadTooLarge, scope: Scope, receive: Receive, send: Send
    ) -> None:
        taken, started = 0, False

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise too_large
            return message

        async def guarded(message: Message) -> None:
            nonlocal started
            # Frameworks answer a failed read in their own way; that answer is dropped for ours.
            if taken <= limit or started:
                started = True
                await send(message)

        try:
            await self._app(scope, counted, guarded)
        except PayloadTooLarge:
            if taken <= limit:
                raise
        if taken > limit and not started:
            await respond(too_large)(scope, receive, send)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == RAW_ID_HEADER and CLIENT_ID.fullmatch(value):
            return value.decode()
    return new_request_id()


def _refused(headers: Iterable[tuple[bytes, bytes]], limit: int) -> ApiError | None:
    for name, value in headers:
        if name == b"content-encoding" and value.lower() != b"identity":
            return UnsupportedMedia(
                "Compressed request bodies are not accepted; send the body without Content-Encoding."
            )
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            return _too_large(limit)
    return None


def _announced(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name == b"content-length" for name, _ in headers)


def _unannounced(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"A request body without a Content-Length header may have {limit} bytes; send its length, or use /v1/uploads."
    )


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is larger than {limit} bytes.")
