"""The first thing a request to vLLM meets (ASGI middleware, given by `--middleware`, outermost of all).

Leaves exactly Weft's routes, proves the replica's key before a byte of the body is read, and makes the adapter that a
completion names resident before vLLM sees the request. The body reaches vLLM unchanged, the answer streams through
untouched and at its reader's pace, a departed client's `http.disconnect` is passed on. Prompts are never logged.
"""

import hmac
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from inference.call import App, Call, Gone, Message, Receive, Scope, Send
from inference.connections import connections
from inference.metering import Asked, Tokens
from inference.problems import AdapterError, envelope
from inference.residency import Ask, Visit
from service.contracts.ids import is_adapter_id
from service.contracts.replica import CACHE_HEADER, REQUEST_ID_HEADER, SPENT_PATH, TENANT_HEADER, WAIT_HEADER

if TYPE_CHECKING:
    from inference.runtime import Runtime

COMPLETIONS = frozenset({("POST", f"/v1/{name}") for name in ("chat/completions", "completions", "responses")})
GUARDED = COMPLETIONS | {
    ("POST", "/v1/weft/adapters/ensure"),
    ("POST", "/v1/weft/adapters/evict"),
    ("POST", SPENT_PATH),
    ("GET", "/v1/weft/status"),
}
OPEN = frozenset({("GET", "/health"), ("GET", "/metrics")})


ANONYMOUS = ""
"""The one tenant of all requests that name none."""
MAX_NAME_BYTES = 128
_TENANT = TENANT_HEADER.encode()
_REQUEST_ID = REQUEST_ID_HEADER.encode()

_decode = msgspec.json.Decoder(Asked).decode


class Admission:
    """vLLM builds it with the application; what it needs of the running server lies in the application's state."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            state = scope["app"].state
            state.server.config.http_protocol_class = connections(state.weft.stall_seconds)
            return await self._app(scope, _closing(scope, receive), send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        route = (scope["method"], scope["path"])
        if route in OPEN:
            return await self._app(scope, receive, send)
        if route not in GUARDED:
            return await refuse(send, 404, "There is no such route.", code="not_found")
        runtime: Runtime = scope["app"].state.weft
        if not _authorized(scope, runtime.authorization):
            return await refuse(send, 401, "Incorrect API key provided.", code="invalid_api_key")
        if route not in COMPLETIONS:
            return await self._app(scope, receive, send)
        try:
            await self._complete(runtime, scope, receive, send)
        except AdapterError as error:
            runtime.metrics.refused(error.problem)
            await answer(send, error.status, error.body(), error.headers)
        except Gone:
            return None

    async def _complete(self, runtime: "Runtime", scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive, runtime.max_body_bytes)
        if body is None:
            return await refuse(send, 413, "The request body is too large.", code="payload_too_large")
        try:
            asked = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            message = "The body must be a JSON object whose `model` is a string."
            return await refuse(send, 400, message, code="invalid_request", param="model")
        is_base = asked.model == runtime.base_model
        if not is_base and not is_adapter_id(asked.model):
            message = "The model does not exist or you do not have access to it."
            return await refuse(send, 404, message, code="model_not_found", param="model")
        ask = Ask(_tenant(scope), None if is_base else asked.model, asked.likely_cost(len(body)), len(body))
        del asked
        call = Call(body, receive, send)
        del body  # the call hands it to vLLM and forgets it
        try:
            await self._serve(runtime, ask, scope, call)
        finally:
            call.close()

    async def _serve(self, runtime: "Runtime", ask: Ask, scope: Scope, call: "Call") -> None:
        residency = runtime.residency
        visit = residency.try_enter(ask) or await call.unless_gone(residency.enter(ask))
        call.headers = _headers_of(visit)
        call.work.on_idle = partial(residency.rest, visit, call.work)
        try:
            with call.work.asked():
                await self._app(scope, call.receive, call.send)
        finally:
            used = call.used
            residency.leave(visit, used=used and used.total, aborted=not call.complete)
            request_id = _header(scope, _REQUEST_ID)[:MAX_NAME_BYTES].decode("latin-1")
            runtime.spent(ask.tenant, request_id, used or Tokens())


def _headers_of(visit: Visit) -> list[tuple[bytes, bytes]]:
    waited = (WAIT_HEADER.encode(), b"%.1f" % (visit.waited * 1000))
    return [waited] if visit.tier is None else [(CACHE_HEADER.encode(), visit.tier.encode()), waited]


def _closing(scope: Scope, receive: Receive) -> Receive:
    """Closes the runtime when the server ends, before vLLM takes the application's state apart."""

    async def receive_and_close() -> Message:
        message = await receive()
        if message["type"] == "lifespan.shutdown":
            await scope["app"].state.weft.close()
        return message

    return receive_and_close


async def refuse(send: Send, status: int, message: str, *, code: str, param: str | None = None) -> None:
    await answer(send, status, envelope(status, message, code=code, param=param), {})


async def answer(send: Send, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
    content = json.dumps(body).encode()
    fields = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    fields += [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": content})


def _authorized(scope: Scope, expected: bytes) -> bool:
    return hmac.compare_digest(_header(scope, b"authorization"), expected)


def _tenant(scope: Scope) -> str:
    return _header(scope, _TENANT)[:MAX_NAME_BYTES].decode("latin-1") or ANONYMOUS


def _header(scope: Scope, wanted: bytes) -> bytes:
    return next((value for name, value in scope["headers"] if name == wanted), b"")


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None if it is longer than `limit`."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)
