"""The client's side of a completion: taking its request, noticing that it left, answering at the pace it reads.

A client that reads nothing is cut off by the server (`service.connections`), which looks here as if it had left.
"""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Protocol

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from service.errors import RequestTimeout

BODY_SECONDS = 30.0

Headers = list[tuple[bytes, bytes]]


async def read_body(receive: Receive, take: Callable[[int], None]) -> bytes:
    """The whole body, of which `take` is told as it comes. How large one may be is the middleware's.

    Raises RequestTimeout where it trickles in, and what `take` raises.
    """
    # How long the first of it may take is bounded by the server, and most have no more.
    parts = [first := await receive()]
    take(2 * _size(first))
    try:
        if first.get("more_body", False):
            async with asyncio.timeout(BODY_SECONDS):
                while parts[-1].get("more_body", False):
                    parts.append(await receive())
                    # Once as it came and once as it goes on; what is parsed in between goes at once.
                    take(2 * _size(parts[-1]))
    except TimeoutError as error:
        raise RequestTimeout(f"The request body did not arrive within {BODY_SECONDS:g} seconds.") from error
    return first["body"] if len(parts) == 1 else b"".join(part["body"] for part in parts)


def _size(message: Message) -> int:
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return len(message["body"])


class Connection(Protocol):
    """What the server says of a connection: whether it is `lost`, and by a call of `when_lost` that it is now."""

    lost: bool
    when_lost: Callable[[], None] | None


def connection_of(scope: Scope) -> Connection:
    """The one that the server (`service.connections`) gives with each request: a task that watches costs too much."""
    return scope["state"]["connection"]


class Answer:
    """The response on its way out, as a context: the block is cancelled when the client leaves before its end.

    Inside, that is an ordinary CancelledError, which the context swallows: there is nobody to answer.
    """

    __slots__ = ("_connection", "_headers", "_left", "_lost", "_over", "_send", "_task")

    def __init__(self, connection: Connection, send: Send, headers: Headers) -> None:
        self._connection = connection
        self._send = send
        self._headers = headers
        self._over = False
        self._left = False

    def __enter__(self) -> "Answer":
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._lost = self._cancel
        self._connection.when_lost = self._lost
        if self._connection.lost:
            self._cancel()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._over = True
        # It may be the next request's already.
        if self._connection.when_lost is self._lost:
            self._connection.when_lost = None
        # Kept, it would make a cycle.
        del self._lost
        if not self._left or not isinstance(error, asyncio.CancelledError):
            return False
        self._task.uncancel()
        return True

    def start(self, headers: Headers) -> Awaitable[None]:
        return self._send({"type": "http.response.start", "status": 200, "headers": headers + self._headers})

    def write(self, data: bytes) -> Awaitable[None]:
        """Returns when the server has room for more."""
        return self._send({"type": "http.response.body", "body": data, "more_body": True})

    def finish(self, data: bytes = b"") -> Awaitable[None]:
        # From here on the client may leave.
        self._over = True
        return self._send({"type": "http.response.body", "body": data, "more_body": False})

    def _cancel(self) -> None:
        if not self._over:
            self._left = True
            self._task.cancel()
