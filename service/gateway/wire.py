"""One connection to a replica: HTTP/1.1, in as few steps as the bytes of an answer allow. Which there are is `pool`'s.

Every completion passes here twice, and a general client costs more than the rest of its way through the gateway. What
is left out, nobody needs of a replica: redirects, cookies, compression, other methods, several requests at once.
"""

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

READ_BUFFER_BYTES = 32 << 10
"""At so much that nobody has read, nothing more is taken in: for a client that does not keep up, no more is held."""
HEAD_BYTES = 64 << 10
"""Of an answer's headers; also of whatever else is no body, such as the extensions of chunks and trailers."""
JOINED_BYTES = 64 << 10
"""A body up to this goes out together with its head; to copy a larger one costs more than another call."""


class WireError(Exception):
    """The connection failed, or what came on it is no answer."""


class NotConnected(WireError):
    """There was no connection: the replica never had the request."""


class WireSilent(WireError):
    """Nothing has come for as long as anybody would wait."""


class Wire(asyncio.Protocol):
    """One request at a time: `ask`, `begun`, `read` to the end, `close`.

    `status` and `headers`, by names in lower case, are the answer's once it has begun. `heard` is when the replica was
    last heard of, or was asked, on the event loop's clock; of a free connection, since when it is free.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, free: Callable[["Wire"], None]) -> None:
        self._loop = loop
        self._free = free
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._size = self._head_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._begun = self._ended = self._kept = self._paused = False
        self.lost = False
        self.busy = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.heard = loop.time()

    def ask(self, head: bytes, body: bytes) -> None:
        """Sends a request. `head` has all of its lines but for the body's length, with which it ends."""
        self.busy = True
        self.status, self.headers = 0, {}
        self._begun = self._ended = self._kept = False
        self._size = self._head_bytes = 0
        self.heard = self._loop.time()
        head = b"%bcontent-length: %d\r\n\r\n" % (head, len(body))
        if len(body) <= JOINED_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    async def begun(self) -> None:
        """Returns when the answer's head has come. Raises WireError, or what `fail` was given."""
        while not self._begun:
            await self._news()

    async def read(self) -> bytes:
        """What has come of the body, at the end b"". Raises as `begun` does, but not before all that came was read."""
        while not self._parts:
            if self._ended:
                return b""
            await self._news()
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        self._size = 0
        if self._paused:
            self._paused = False
            # It was not the replica that was silent.
            self.heard = self._loop.time()
            self._transport.resume_reading()
        return data

    def fail(self, error: Exception) -> None:
        """Raises `error` in whoever waits for the answer, unless all of it is here."""
        if not self._ended and self._failure is None:
            self._failure = error
            self._wake()

    def close(self) -> None:
        """Frees the connection for another request, or ends it where the answer was not read to its end."""
        if not self.busy:
            return
        self.busy = False
        unread, self._parts = bool(self._parts), []
        if self._kept and not (self.lost or unread or self._failure or self._transport.get_write_buffer_size()):
            self.heard = self._loop.time()
            self._free(self)
        else:
            self._transport.abort()

    def abort(self) -> None:
        self._transport.abort()

    @property
    def usable(self) -> bool:
        return not self._transport.is_closing()

    def is_silent(self, since: float) -> bool:
        """Whether nothing came `since` then, though it is waited for."""
        return self.busy and not self._paused and not self._ended and self.heard < since

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.heard = self._loop.time()
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
            if self._head_bytes > HEAD_BYTES:
                raise WireError("the answer's head is too large")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, WireError) as error:
            self._kept = False
            self.fail(WireError(f"what came is no answer: {error}"))
            self._transport.abort()
        else:
            if self._size > READ_BUFFER_BYTES and not self._paused:
                self._paused = True
                self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if exc is None and self._begun and self._ends_with_connection():
            self._ended = True
            self._wake()
        self.fail(WireError(f"the connection was closed{f': {exc}' if exc else ''}"))
        self._free(self)

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._ended or not self.busy:
            raise WireError("nothing was asked")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        self.status = self._parser.get_status_code()
        # The ones below only announce the answer.
        self._begun = self.status >= 200

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        self._parts.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        if self._begun:
            self._ended = True
            self._kept = self._parser.should_keep_alive()
        else:
            self.headers = {}

    def _ends_with_connection(self) -> bool:
        return not self.headers.keys() & {b"content-length", b"transfer-encoding"}

    async def _news(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
