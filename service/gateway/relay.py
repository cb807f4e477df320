"""The replica's side of a completion: choosing one, asking it, holding on while an adapter loads, trying once more.

A request is repeated only while nothing has been sent to the client, and once: what kills one engine must not be
carried from engine to engine.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from service.contracts.replica import REQUEST_ID_HEADER
from service.errors import ApiError, Unavailable
from service.gateway.events import DATA, END, FAILURE
from service.gateway.place import Placement
from service.gateway.problems import problem_of, retry_after, status_inside
from service.gateway.resolve import Target
from service.replicas.membership import Membership, Replica

CONNECT_SECONDS = 2.0
SILENCE_SECONDS = 600.0
"""As long as OpenAI's clients wait. A hung engine is found by its replica's canary long before."""
KEEPALIVE_SECONDS = 4.0
"""Less than the 5 s after which vLLM closes an idle connection, or requests would go out on dying ones."""
AGAIN_SECONDS = 0.2
ANSWER_LIMIT = 64 << 20
EVENT_STREAM = "text/event-stream"

log = logging.getLogger("service.gateway")


@dataclass(frozen=True, slots=True)
class Call:
    """One request to whichever replica. `affinity` decides which one is preferred."""

    path: str
    body: bytes
    target: Target
    affinity: str
    request_id: str
    stream: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """A replica's 200. `first` is the whole body, or of an event stream what came first; the rest is in `response`."""

    response: aiohttp.ClientResponse
    first: bytes

    @property
    def is_stream(self) -> bool:
        return self.response.content_type == EVENT_STREAM


class ReplicaFailed(Exception):
    """No useful answer. `repeat` is False where the same replica would only fail in the same way; `news` is False where
    it was known to fail.
    """

    def __init__(self, reason: str, *, repeat: bool = True, news: bool = True) -> None:
        super().__init__(reason)
        self.repeat = repeat
        self.news = news


def open_session() -> aiohttp.ClientSession:
    """The process's one client; needs a running event loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


class Relay:
    def __init__(
        self, session: aiohttp.ClientSession, placement: Placement, membership: Membership, cold_wait: float
    ) -> None:
        self._session = session
        self._placement = placement
        self._membership = membership
        self._cold_wait = cold_wait

    @asynccontextmanager
    async def ask(self, call: Call) -> AsyncGenerator[Reply, None]:
        """A replica's 200, its connection closed at the end of the block unless it was read to the end.

        Raises ApiError: the replica's own refusal, or Unavailable where no replica could be made to answer.
        """
        tried: list[str] = []
        deadline = asyncio.get_running_loop().time() + self._cold_wait
        while True:
            replica = self._placement.choose(call.target.base, call.affinity, tried)
            with self._placement.occupied(replica):
                try:
                    reply = await self._held(replica, call, deadline)
                except ReplicaFailed as failure:
                    await self._after(failure, replica, call, tried)
                    continue
                try:
                    yield reply
                finally:
                    reply.response.close()
                return

    async def _after(self, failure: ReplicaFailed, replica: Replica, call: Call, tried: list[str]) -> None:
        """Returns where another attempt is worth it."""
        # Not each of thousands a second while a replica restarts.
        if failure.news:
            log.warning("replica %s failed request %s: %s", replica.id, call.request_id, failure)
        self._membership.wake()
        only = replica.id in tried or len(self._membership.ready(call.target.base)) < 2
        if tried or (only and not failure.repeat):
            raise Unavailable(
                "The model server did not answer; it may be restarting. Try again.",
                code="replica_unavailable",
                retry_after=2,
            ) from failure
        tried.append(replica.id)
        if only:
            await asyncio.sleep(AGAIN_SECONDS)

    async def _held(self, replica: Replica, call: Call, deadline: float) -> Reply:
        """Asks until the adapter is loaded or `deadline`, on the event loop's clock, has come."""
        while True:
            try:
                return await self._once(replica, call, deadline)
            except ApiError as problem:
                left = deadline - asyncio.get_running_loop().time()
                if problem.code != "adapter_loading" or left <= 0:
                    raise
                await asyncio.sleep(min(retry_after(problem), left))

    async def _once(self, replica: Replica, call: Call, deadline: float) -> Reply:
        try:
            response = await self._post(replica, call, deadline)
            try:
                return await _reply(response, call)
            except BaseException:
                response.close()
                raise
        except aiohttp.SocketTimeoutError as error:
            raise Unavailable("The model server did not answer in time; try again.", code="replica_timeout") from error
        except (aiohttp.ClientError, OSError) as error:
            news = not self._membership.is_suspect(replica)
            self._membership.suspect(replica)
            raise ReplicaFailed(f"{type(error).__name__}: {error}", news=news) from error

    async def _post(self, replica: Replica, call: Call, deadline: float) -> aiohttp.ClientResponse:
        headers = {
            "Authorization": f"Bearer {replica.api_key}",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            REQUEST_ID_HEADER: call.request_id,
        }
        # Only a stream says with its headers that the adapter is there; other answers also take as long as they are.
        limit = deadline if call.stream and call.target.is_adapter else None
        clock = asyncio.timeout_at(limit)
        try:
            async with clock:
                return await self._session.post(replica.url + call.path, data=call.body, headers=headers)
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise Unavailable(
                "The model is being loaded; try again shortly.", code="adapter_loading", retry_after=5
            ) from error


async def _reply(response: aiohttp.ClientResponse, call: Call) -> Reply:
    if response.status == 200 and response.content_type == EVENT_STREAM:
        first = await response.content.readany()
        if not first:
            raise ReplicaFailed("the stream ended before its first event")
        if first.startswith(FAILURE):
            body = first.partition(END)[0].removeprefix(DATA)
            raise _refusal(status_inside(body), response, body, call)
        return Reply(response, first)
    body = await _whole(response)
    if response.status == 200:
        return Reply(response, body)
    raise _refusal(response.status, response, body, call)


def _refusal(status: int, response: aiohttp.ClientResponse, body: bytes, call: Call) -> ApiError | ReplicaFailed:
    problem = problem_of(status, response.headers, body, call.target)
    # A crash inside the engine may be this request's doing; only another engine is worth the question.
    return problem or ReplicaFailed(f"status {status}", repeat=status != 500)


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > ANSWER_LIMIT:
            raise Unavailable(f"The answer is larger than {ANSWER_LIMIT} bytes; ask for less at once.")
        parts.append(part)
    return b"".join(parts)
