"""The replica's side of a completion: choosing one, asking it, holding on while an adapter loads, trying another.

A request is repeated only while nothing has been sent to the client. One that a replica may have taken in is repeated
once: what kills one engine must not be carried from engine to engine. One that was never taken in goes on to the next.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from service.contracts.replica import REQUEST_ID_HEADER, TENANT_HEADER
from service.errors import ApiError, InvalidRequest, Unavailable
from service.gateway.events import DATA, END, FAILURE
from service.gateway.place import Placement
from service.gateway.pool import KEEPALIVE_SECONDS, Pool, head_of
from service.gateway.problems import NO_CAPACITY, PASSING, problem_of, retry_after, status_inside
from service.gateway.pulse import Pulse, Silent
from service.gateway.resolve import Target
from service.gateway.wire import NotConnected, Wire, WireError, WireSilent
from service.replicas.membership import Membership, Replica

AGAIN_SECONDS = 0.2
ANSWER_LIMIT = 64 << 20
EVENT_STREAM = b"text/event-stream"

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
    """A replica's 200. `first` is the whole body, or of an event stream what came first; the rest comes from `wire`."""

    wire: Wire
    first: bytes
    is_stream: bool


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
    """The process's one client for whatever is no completion; needs a running event loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


class Relay:
    def __init__(
        self,
        pool: Pool,
        placement: Placement,
        membership: Membership,
        pulse: Pulse,
        cold_wait: float,
    ) -> None:
        self._pool = pool
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
                    reply.wire.close()
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
            wire = await self._pool.wire(replica.url)
            with self._pulse.wait(replica, wire.fail):
                try:
                    return await self._asked(wire, replica, call, deadline)
                except BaseException:
                    wire.close()
                    raise
        except Silent as error:
            raise ReplicaFailed("it no longer answers anything") from error
        except ReplicaFailed:
            self._pulse.doubt(replica)
            raise
        except WireSilent as error:
            raise Unavailable("The model server did not answer in time; try again.", code="replica_timeout") from error
        except WireError as error:
            news = not self._membership.is_suspect(replica)
            self._membership.suspect(replica)
            raise ReplicaFailed(str(error), news=news, taken=not isinstance(error, NotConnected)) from error

    async def _asked(self, wire: Wire, replica: Replica, call: Call, deadline: float) -> Reply:
        head = head_of(replica.url, call.path, replica.api_key)
        own = f"{REQUEST_ID_HEADER}: {call.request_id}\r\n{TENANT_HEADER}: {call.tenant}\r\n"
        wire.ask(head + own.encode(), call.body)
        # Only a stream says with its headers that the adapter is there; other answers also take as long as they are.
        if call.stream and call.target.is_adapter:
            clock = asyncio.get_running_loop().call_at(deadline, _still_loading, wire)
            try:
                await wire.begun()
            finally:
                clock.cancel()
        else:
            await wire.begun()
        return await _reply(wire, call)


def _still_loading(wire: Wire) -> None:
    wire.fail(Unavailable("The model is being loaded; try again shortly.", code="adapter_loading", retry_after=5))


async def _reply(wire: Wire, call: Call) -> Reply:
    if wire.status == 200 and wire.headers.get(b"content-type", b"").partition(b";")[0].strip().lower() == EVENT_STREAM:
        first = await wire.read()
        if not first:
            raise ReplicaFailed("the stream ended before its first event")
        if first.startswith(FAILURE):
            body = first.partition(END)[0].removeprefix(DATA)
            raise _refusal(status_inside(body), wire, body, call)
        return Reply(wire, first, is_stream=True)
    body = await _whole(wire, call)
    if wire.status == 200:
        return Reply(wire, body, is_stream=False)
    raise _refusal(wire.status, wire, body, call)


def _refusal(status: int, wire: Wire, body: bytes, call: Call) -> ApiError | ReplicaFailed:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in wire.headers.items()}
    problem = problem_of(status, headers, body, call.target)
    # A crash inside the engine may be this request's doing; only another engine is worth the question.
    return problem or ReplicaFailed(f"status {status}", repeat=status != 500)


async def _whole(wire: Wire, call: Call) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await wire.read():
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
    return parts[0] if len(parts) == 1 else b"".join(parts)
