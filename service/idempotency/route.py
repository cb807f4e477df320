"""Routes whose POSTs may be repeated: routers with `route_class=IdempotentRoute` and, as a dependency, a transaction.

The transaction's dependency begins the attempt, and the route records the answer before that transaction commits. A
route whose work is outside of the database depends on a claim instead, and one that makes its own transactions, as for
multipart forms, begins and records by itself with `Attempts.of`.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from starlette.requests import Request as HttpRequest

from service.contracts.ids import ProjectId
from service.db import Database
from service.errors import InvalidRequest
from service.idempotency.answers import KEYED, Replayed, in_flight
from service.idempotency.answers import Request as Described
from service.idempotency.attempt import WAIT_SECONDS, Attempt
from service.idempotency.claim import Claim

KEY_HEADER = "idempotency-key"
RETRY_HEADER = "x-stainless-retry-count"
REPLAYED_HEADER = "idempotent-replayed"
KEY_LENGTH = 255


class Attempts:
    """What attempts of one process share: the secret that seals answers, and who is at what."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    def of(self, request: Request, body_hash: bytes) -> Attempt:
        return Attempt(described(request, body_hash, self._secret))

    @asynccontextmanager
    async def in_turn(self, attempt: Attempt) -> AsyncGenerator[None]:
        """Of attempts at the same, one at a time holds a connection to the database; the others wait here."""
        if not attempt.exclusive:
            yield
            return
        lock = self._locks.setdefault(attempt.request.scope, asyncio.Lock())
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await lock.acquire()
        except TimeoutError as error:
            raise in_flight() from error
        try:
            yield
        finally:
            lock.release()


class IdempotentRoute(APIRoute):
    """Other methods pass: what they do is the same however often they are asked."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        return _once(handle) if "POST" in self.methods else handle


def attempt_of(request: Request) -> Attempt | None:
    """The attempt that a request is, where its route is an IdempotentRoute and its body could be read ahead."""
    return getattr(request.state, "attempt", None)


@asynccontextmanager
async def claimed(request: Request, database: Database, project: ProjectId) -> AsyncGenerator[None]:
    """Until the end of the block and the answer that its route gives then, a request under a key is claimed."""
    attempt = attempt_of(request)
    if attempt is None or attempt.request.key is None:
        yield
        return
    async with Claim(database, project, attempt.request, KEYED) as claim:
        request.state.claim = claim
        yield


def _once(
    handle: Callable[[Request], Coroutine[Any, Any, Response]],
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def once(request: Request) -> Response:
        if request.headers.get("content-type", "").startswith("multipart/"):
            # Files are never held in memory, and each attempt of a client draws another boundary.
            return await handle(request)
        attempts: Attempts = request.app.state.attempts
        attempt = attempts.of(request, hashlib.sha256(await request.body()).digest())
        request.state.attempt = attempt
        async with attempts.in_turn(attempt):
            try:
                response = await handle(request)
            except Replayed as answered:
                return replay(answered)
            await _record(request, attempt, response)
            return response

    return once


async def _record(request: Request, attempt: Attempt, response: Response) -> None:
    if response.status_code >= 300 or isinstance(response, StreamingResponse):
        return
    claim: Claim | None = getattr(request.state, "claim", None)
    if attempt.begun:
        await attempt.record(response.status_code, bytes(response.body))
    elif claim is not None:
        await claim.settle(response.status_code, bytes(response.body))


def replay(answered: Replayed) -> Response:
    headers = {REPLAYED_HEADER: "true"}
    return Response(answered.body, answered.status, headers=headers, media_type="application/json")


def described(request: HttpRequest, body_hash: bytes, secret: str) -> Described:
    """Raises InvalidRequest for a key that is none."""
    count = request.headers.get(RETRY_HEADER, "")
    return Described(
        caller=hashlib.sha256(request.headers.get("authorization", "").encode()).hexdigest(),
        method=request.method,
        path=f"{request.url.path}?{request.url.query}",
        body_hash=body_hash,
        key=_key(request),
        repeats=count.isdecimal() and int(count[:9]) > 0,
        secret=secret,
    )


def _key(request: HttpRequest) -> str | None:
    key = request.headers.get(KEY_HEADER)
    if key is not None and not (0 < len(key) <= KEY_LENGTH and key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"'Idempotency-Key' must have 1 to {KEY_LENGTH} printable ASCII characters.",
            code="invalid_idempotency_key",
        )
    return key
