"""The replica's side of a completion: choosing one, asking it, holding on while an adapter loads, trying another.

A request is repeated only while nothing has been sent to the client. One that a replica may have taken in is repeated
once: what kills one engine must not be carried from engine to engine. One that was never taken in goes on to the next.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from service.contracts.replica import REQUEST_ID_HEADER, TENANT_HEADER
from service.errors import ApiError, InvalidRequest, Unavailable
from service.gateway.events import DATA, END, FAILURE
from service.gateway.place import Placement
from service.gateway.problems import NO_CAPACITY, PASSING, problem_of, retry_after, status_inside
from service.gateway.pulse import Pulse, Silent
from service.gateway.resolve import Target
from service.replicas.membership import Membership, Replica

CONNECT_SECONDS = 2.0
SILENCE_SECONDS = 600.0
"""As long as OpenAI's clients wait. A hung engine is found by its replica's canary long before."""
KEEPALIVE_SECONDS = 4.0
"""Less than the 5 s after which vLLM closes an idle connection, or requests would go out on dying ones."""
AGAIN_SECONDS = 0.2
ANSWER_LIMIT = 64 << 20
READ_BUFFER_BYTES = 16 << 10
"""aiohttp stops reading at twice this; for a client that does not keep up, no more than that is held."""
RECEIVE_BUFFER_BYTES = 16 << 10
"""The kernel's buffer for what a replica sends, which it doubles and which would grow to megabytes otherwise."""
EVENT_STREAM = "text/event-stream"

log = logging.getLogger("service.gateway")


@dataclass(frozen=True, slots=True)
class Call:
    """One request to whichever replica. `affinity` decides which one is preferred, `tenant` is a pseudonym."""

    path: str
    body: bytes
    target: Target
    affinity: str
    tenant: str
    request_id: str
    stream: bool
    once: bool = False
    """Whether it is not worth asking again once a replica may have taken it in."""
    take: Callable[[int], None] | None = None
    """Told the bytes of an answer that is held whole; raises ApiError where they are too many."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A replica's 200. `first` is the whole body, or of an event stream what came first; the rest is in `response`."""

    response: aiohttp.ClientResponse
    first: bytes

    @property
    def is_stream(self) -> bool:
        return self.response.content_type == EVENT_STREAM


class ReplicaFailed(Exception):
    """No useful answer. `repeat` is False where the same replica would only fail in the same way, `taken` where it
    never had the request, and `news` where it was known to fail.
    """

    def __init__(self, reason: str, *, repeat: bool = True, taken: bool = True, news: bool = True) -> None:
        super().__init__(reason)
        self.repeat = repeat
        self.taken = taken
        self.news = news


class AnswerDropped(Exception):
    """There is no place for a replica's answer; `problem` says so to the client."""

    def __init__(self, problem: ApiError) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(slots=True)
class Attempts:
    """What was tried for one call. `deadline` is the end of its wait for the adapter, on the event loop's clock."""

    deadline: float
    tried: set[str] = field(default_factory=set[str])
    taken: int = 0
    moved: bool = False
    stay: Replica | None = None


def open_session() -> aiohttp.ClientSession:
    """The process's one client; needs a running event loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS, socket_factory=_socket),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS),
        read_bufsize=READ_BUFFER_BYTES,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


class Relay:
    def __init__(
        self,
        session: aiohttp.ClientSession,
        placement: Placement,
        membership: Membership,
        pulse: Pulse,
        cold_wait: float,
    ) -> None:
        self._session = session
        self._placement = placement
        self._membership = membership
        self._pulse = pulse
        self._cold_wait = cold_wait

    @asynccontextmanager
    async def ask(self, call: Call, left: Callable[[Replica], None] | None = None) -> AsyncGenerator[Reply, None]:
        """A replica's 200, its connection closed at the end of the block unless it was read to the end.

        `left` is called where this is cancelled while a replica may be at it, or what it has done is dropped.

        Raises ApiError: the replica's own refusal, or Unavailable where no replica could be made to answer.
        """
        self._membership.check(call.target.model)
        attempts = Attempts(asyncio.get_running_loop().time() + self._cold_wait)
        while True:
            replica = attempts.stay or self._placement.choose(call.target.base, call.affinity, attempts.tried)
            with self._placement.occupied(replica, call.affinity):
                try:
                    reply = await self._once(replica, call, attempts.deadline)
                except (asyncio.CancelledError, AnswerDropped) as end:
                    if left is not None:
                        left(replica)
                    if isinstance(end, AnswerDropped):
                        raise end.problem from end
                    raise
                except ReplicaFailed as failure:
                    await self._after_failure(failure, replica, call, attempts)
                    continue
                except ApiError as problem:
                    await self._after_problem(problem, replica, call, attempts)
                    continue
                try:
                    yield reply
                finally:
                    reply.response.close()
                return

    async def _after_failure(self, failure: ReplicaFailed, replica: Replica, call: Call, attempts: Attempts) -> None:
        """Returns where another attempt is worth it."""
        # Not each of thousands a second while a replica restarts.
        if failure.news:
            log.warning("replica %s failed request %s: %s", replica.id, call.request_id, failure)
        self._membership.wake()
        first = not attempts.tried
        attempts.stay = None
        attempts.tried.add(replica.id)
        attempts.taken += failure.taken
        spent = call.once and attempts.taken
        if not spent and attempts.taken < 2 and self._others(call, attempts):
            return
        if spent or not first or not failure.repeat:
            raise Unavailable(
                "The model server did not answer; it may be restarting. Try again.",
                code="replica_unavailable",
                retry_after=2,
            ) from failure
        await asyncio.sleep(AGAIN_SECONDS)

    async def _after_problem(self, problem: ApiError, replica: Replica, call: Call, attempts: Attempts) -> None:
        """Returns where it is worth asking another replica, or this one again. Raises `problem` where it is final."""
        better = [other for other in self._others(call, attempts) if other.id != replica.id]
        if problem.code != NO_CAPACITY:
            better = [other for other in better if call.target.model in other.adapters]
        if problem.code in PASSING and better and not attempts.moved:
            wanted = {other.id for other in better}
            attempts.tried |= {other.id for other in self._membership.ready(call.target.base)} - wanted
            attempts.moved, attempts.stay = True, None
            return
        left = attempts.deadline - asyncio.get_running_loop().time()
        if problem.code != "adapter_loading" or left <= 0:
            raise problem
        # It is on its way there; elsewhere the load would begin anew.
        attempts.stay = replica
        await asyncio.sleep(min(retry_after(problem), left))

    def _others(self, call: Call, attempts: Attempts) -> list[Replica]:
        """Replicas that were not tried, without those that are not expected to answer unless none else is left."""
        untried = [other for other in self._membership.ready(call.target.base) if other.id not in attempts.tried]
        return [other for other in untried if not self._membership.is_suspect(other)] or untried

    async def _once(self, replica: Replica, call: Call, deadline: float) -> Reply:
        try:
            async with self._pulse.wait(replica):
                response = await self._post(replica, call, deadline)
                try:
                    return await _reply(response, call)
                except BaseException:
                    response.close()
                    raise
        except Silent as error:
            raise ReplicaFailed("it no longer answers anything") from error
        except ReplicaFailed:
            self._pulse.doubt(replica)
            raise
        except aiohttp.SocketTimeoutError as error:
            raise Unavailable("The model server did not answer in time; try again.", code="replica_timeout") from error
        except (aiohttp.ClientError, OSError) as error:
            news = not self._membership.is_suspect(replica)
            self._membership.suspect(replica)
            taken = not isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError))
            raise ReplicaFailed(f"{type(error).__name__}: {error}", news=news, taken=taken) from error

    async def _post(self, replica: Replica, call: Call, deadline: float) -> aiohttp.ClientResponse:
        headers = {
            "Authorization": f"Bearer {replica.api_key}",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            REQUEST_ID_HEADER: call.request_id,
            TENANT_HEADER: call.tenant,
        }
        post = self._session.post(replica.url + call.path, data=call.body, headers=headers)
        # Only a stream says with its headers that the adapter is there; other answers also take as long as they are.
        if not call.stream or not call.target.is_adapter:
            return await post
        clock = asyncio.timeout_at(deadline)
        try:
            async with clock:
                return await post
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise Unavailable(
                "The model is being loaded; try again shortly.", code="adapter_loading", retry_after=5
            ) from error


def _socket(address: Any) -> socket.socket:
    """As aiohttp makes it, with a small receive buffer: that has to be said before the connection is made."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    return made


async def _reply(response: aiohttp.ClientResponse, call: Call) -> Reply:
    if response.status == 200 and response.content_type == EVENT_STREAM:
        first = await response.content.readany()
        if not first:
            raise ReplicaFailed("the stream ended before its first event")
        if first.startswith(FAILURE):
            body = first.partition(END)[0].removeprefix(DATA)
            raise _refusal(status_inside(body), response, body, call)
        return Reply(response, first)
    body = await _whole(response, call)
    if response.status == 200:
        return Reply(response, body)
    raise _refusal(response.status, response, body, call)


def _refusal(status: int, response: aiohttp.ClientResponse, body: bytes, call: Call) -> ApiError | ReplicaFailed:
    problem = problem_of(status, response.headers, body, call.target)
    # A crash inside the engine may be this request's doing; only another engine is worth the question.
    return problem or ReplicaFailed(f"status {status}", repeat=status != 500)


async def _whole(response: aiohttp.ClientResponse, call: Call) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > ANSWER_LIMIT:
            problem = f"The answer is larger than {ANSWER_LIMIT} bytes; ask for less at once, or for a stream."
            raise AnswerDropped(InvalidRequest(problem, code="answer_too_large"))
        if call.take is not None:
            try:
                call.take(len(part))
            except ApiError as problem:
                raise AnswerDropped(problem) from problem
        parts.append(part)
    return b"".join(parts)
