"""The client's side of a completion: taking its request, noticing that it left, answering at the pace it reads."""

import asyncio
import logging
from types import TracebackType

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Send

from service.errors import RequestTimeout

BODY_SECONDS = 30.0
STALL_SECONDS = 30.0
"""A client that takes nothing for so long is cut off; the server holds no more than its write buffer meanwhile."""
LOOKS = 4
"""How often in that time a look is taken. A timer per answer costs nothing per event, a timeout per write 6 us."""

Headers = list[tuple[bytes, bytes]]

log = logging.getLogger("service.gateway")


async def read_body(receive: Receive) -> bytes:
    """The whole body; how large it may be is the middleware's. Raises RequestTimeout where it trickles in."""
    parts: list[bytes] = []
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError as error:
        raise RequestTimeout(f"The request body did not arrive within {BODY_SECONDS:g} seconds.") from error


class Answer:
    """The response on its way out, as an async context: the block is cancelled when the client leaves before its end.

    The same for a client that reads nothing. Inside, both are an ordinary CancelledError, which the context swallows:
    there is nobody to answer.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._over = False
        self._left = False
        self._stalled = False
        self._sending_since: float | None = None

    async def __aenter__(self) -> "Answer":
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(STALL_SECONDS / LOOKS, self._look)
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._over = True
        self._timer.cancel()
        self._watcher.cancel()
        if not (self._left or self._stalled) or not isinstance(error, asyncio.CancelledError):
            return False
        self._task.uncancel()
        if self._stalled:
            log.warning("a client that does not read its answer was cut off")
        return True

    async def start(self, headers: Headers) -> None:
        await self._paced({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Returns when the server has room for more."""
        await self._paced({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        # From here on the server reports a disconnect in any case.
        self._over = True
        await self._paced({"type": "http.response.body", "body": data, "more_body": False})

    async def _paced(self, message: dict[str, object]) -> None:
        self._sending_since = self._loop.time()
        await self._send(message)
        self._sending_since = None

    def _look(self) -> None:
        if self._sending_since is not None and self._loop.time() - self._sending_since >= STALL_SECONDS:
            self._stalled = True
            self._task.cancel()
        else:
            self._timer = self._loop.call_later(STALL_SECONDS / LOOKS, self._look)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        if not self._over:
            self._left = True
            self._task.cancel()
