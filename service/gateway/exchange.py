"""Passing a replica's answer on to the client, and booking what it cost before the client has the last of it."""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from service.contracts.replica import CACHE_HEADER, WAIT_HEADER
from service.errors import ApiError, Unavailable
from service.gateway.client import Answer, Headers
from service.gateway.events import NOTHING, EventFilter, StreamBroken, Usage, model_member, usage_of_answer
from service.gateway.problems import problem_of, status_inside
from service.gateway.relay import Reply
from service.gateway.request import CompletionRequest
from service.gateway.resolve import Target
from service.gateway.response_events import ResponseEvents
from service.gateway.wire import WireError
from service.limits.rates import Admission
from service.metrics import Metrics
from service.tenants.auth import Tenant
from service.usage.ledger import UsageEntry
from service.usage.spool import Spool

BROKEN = "The model server stopped in the middle of the answer; try again."
STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Asks proxies in front of us not to collect events.
    (b"x-accel-buffering", b"no"),
]

TOLD = (CACHE_HEADER.encode(), WAIT_HEADER.encode())

Events = EventFilter | ResponseEvents

log = logging.getLogger("service.gateway")


@dataclass(frozen=True, slots=True)
class Answered:
    """A whole answer that goes to no client. `waited` is the seconds before the request's turn at its replica."""

    request_id: str
    body: bytes
    usage: Usage
    waited: float


class Booking:
    """The one entry of a request in the ledger; the first booking counts. `usage` is what was booked so far."""

    def __init__(
        self,
        spool: Spool,
        metrics: Metrics,
        tenant: Tenant,
        target: Target,
        request_id: str,
        admission: Admission,
    ) -> None:
        self._spool = spool
        self._metrics = metrics
        self._admission = admission
        self._tenant = tenant
        self._target = target
        self._request_id = request_id
        self.usage = NOTHING

    def book(self, usage: Usage) -> None:
        if self.usage != NOTHING or usage == NOTHING:
            return
        self.usage = usage
        self._admission.settle(usage.prompt_tokens + usage.completion_tokens)
        entry = UsageEntry(
            id=self._request_id,
            project_id=self._tenant.project_id,
            kind="completion",
            model=self._target.name,
            base_model=self._target.base if self._target.version else None,
            key_id=self._tenant.key_id,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            created_at=datetime.now(UTC),
        )
        self._spool.append(entry)
        self._metrics.tokens.add(self._tenant.project_id, usage.prompt_tokens, usage.completion_tokens)


async def pass_on(reply: Reply, request: CompletionRequest, target: Target, answer: Answer, booking: Booking) -> bool:
    """Sends the answer; whether it was whole. A stream that breaks off ends with an error event, without `[DONE]`."""
    if reply.is_stream:
        events = EventFilter(request, target) if request.counts else ResponseEvents(request, target)
        return await _stream(reply, events, target, answer, booking)
    await _body(reply, target, answer, booking)
    return True


def whole_answer(reply: Reply, target: Target) -> tuple[bytes, Usage]:
    """An answer that is no stream, under the model's public name, and what it cost. Raises Unavailable."""
    try:
        usage = usage_of_answer(reply.first)
    except StreamBroken as error:
        raise Unavailable("The model server's answer was not readable; try again.", code="bad_answer") from error
    if not target.is_adapter:
        return reply.first, usage
    return reply.first.replace(model_member(target.model), model_member(target.name)), usage


async def _body(reply: Reply, target: Target, answer: Answer, booking: Booking) -> None:
    body, usage = whole_answer(reply, target)
    booking.book(usage)
    length = str(len(body)).encode()
    await answer.start([(b"content-type", b"application/json"), (b"content-length", length), *_told(reply)])
    await answer.finish(body)


async def _stream(reply: Reply, events: Events, target: Target, answer: Answer, booking: Booking) -> bool:
    await answer.start([*STREAM_HEADERS, *_told(reply)])
    try:
        await _events(reply, events, answer, booking)
    except (WireError, StreamBroken) as error:
        log.warning("the replica broke off in the middle of a stream: %s", error)
    finally:
        # Whatever ended it: the client has had this much.
        booking.book(events.usage)
    ended_well = events.done and events.failure is None
    await answer.finish(b"" if ended_well else events.failure_event(_problem(events.failure, target)))
    return ended_well


async def _events(reply: Reply, events: Events, answer: Answer, booking: Booking) -> None:
    chunk = reply.first
    while chunk:
        data = events.feed(chunk)
        if events.complete:
            booking.book(events.usage)
        if data:
            await answer.write(data)
        if events.failure is not None:
            return
        chunk = await reply.wire.read()


def _problem(failure: bytes | None, target: Target) -> ApiError:
    problem = problem_of(status_inside(failure), {}, failure, target) if failure is not None else None
    return problem or ApiError(BROKEN, code="server_error")


def _told(reply: Reply) -> Headers:
    """What the replica says of where it found the adapter and how long the request waited for its turn."""
    headers = reply.wire.headers
    return [(name, headers[name]) for name in TOLD if name in headers]
