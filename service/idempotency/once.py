"""Keys of requests to plain ASGI applications, whose answers are generated: kept for UNKEYED, sealed and where short.

Nothing here is called for a request without a key.
"""

import hashlib
from collections.abc import Awaitable, Callable

from starlette.requests import Request as HttpRequest
from starlette.types import Message, Receive, Scope, Send

from service.contracts.ids import ProjectId
from service.db import Database
from service.idempotency.answers import UNKEYED, Replayed
from service.idempotency.claim import MAX_ANSWER_BYTES, Claim
from service.idempotency.route import KEY_HEADER, described, replay

RAW_KEY_HEADER = KEY_HEADER.encode()


class Once:
    def __init__(self, database: Database, secret: str) -> None:
        self._database, self._secret = database, secret

    async def answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        project: ProjectId,
        body: bytes,
        work: Callable[[Send], Awaitable[None]],
    ) -> None:
        """Has `work` answer the request, or answers it as before. Raises ApiError, as `work` may."""
        request = described(HttpRequest(scope), hashlib.sha256(body).digest(), self._secret)
        try:
            async with Claim(self._database, project, request, UNKEYED) as claim:
                await work(_Recorder(claim, send))
        except Replayed as answered:
            await replay(answered)(scope, receive, send)


class _Recorder:
    """Passes an answer on once it is recorded: a client that has it need not ask again, one that asks again gets it.

    A stream is passed on as it comes, and what is recorded at its end is that there was one.
    """

    def __init__(self, claim: Claim, send: Send) -> None:
        self._claim, self._send = claim, send
        self._start: Message | None = None
        self._held: list[bytes] = []
        self._status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            if _short(message):
                self._start = message
            else:
                await self._send(message)
            return
        last = not message.get("more_body", False)
        if self._start is None:
            await self._send(message)
            if last:
                await self._claim.settle(self._status, None)
            return
        self._held.append(message.get("body", b""))
        if last:
            body = b"".join(self._held)
            await self._claim.settle(self._status, body)
            await self._send(self._start)
            await self._send({**message, "body": body})


def _short(start: Message) -> bool:
    lengths = [int(value) for name, value in start["headers"] if name.lower() == b"content-length"]
    return bool(lengths) and lengths[0] <= MAX_ANSWER_BYTES
