"""The client's side of a completion: taking its request, noticing that it left, answering at the pace it reads.

A client that reads nothing is cut off by the server (`service.connections`), which looks here as if it had left.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Send

from service.errors import RequestTimeout

BODY_SECONDS = 30.0

Headers = list[tuple[bytes, bytes]]


async def read_body(receive: Receive, take: Callable[[int], None]) -> bytes:
    """The whole body, of which `take` is told as it comes. How large one may be is the middleware's.

    Raises RequestTimeout where it trickles in, and what `take` raises.
    """
    parts: list[bytes] = []
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                part: bytes = message.get("body", b"")
                # Once as it came and once as it goes on; what is parsed in between goes at once.
                take(2 * len(part))
                parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError as error:
        raise RequestTimeout(f"The request body did not arrive within {BODY_SECONDS:g} seconds.") from error


class Answer:
    """The response on its way out, as an async context: the block is cancelled when the client leaves before its end.

    Inside, that is an ordinary CancelledError, which the context swallows: there is nobody to answer.
    """

    def __init__(self, receive: Receive, send: Send, headers: Headers) -> None:
        self._receive = receive
        self._send = send
        self._headers = headers
        self._over = False
        self._left = False

    async def __aenter__(self) -> "Answer":
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        # With a whole answer it ends by itself. Cancelled, it would leave a cycle of frames, and collecting those takes
        # as long as a quarter of a request.
        if not self._over:
            self._over = True
            self._watcher.cancel()
        if not self._left or not isinstance(error, asyncio.CancelledError):
            return False
        self._task.uncancel()
        return True

    async def start(self, headers: Headers) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": headers + self._headers})

    async def write(self, data: bytes) -> None:
        """Returns when the server has room for more."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        # From here on the server reports a disconnect in any case.
        self._over = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        if not self._over:
            self._left = True
            self._task.cancel()
