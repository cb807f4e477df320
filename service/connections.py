"""The server's side of one client connection: how long a request may take to arrive, how much may wait to be sent.

Applications wait for room by themselves (uvicorn's flow control); this bounds what is written when there is none, in
this process and in the kernel, and cuts a client off that takes next to nothing of what waits for it, even where its
answer is all written already: while it holds out, its request holds a turn at a replica. A request that is not whole
in time, or not HTTP, is answered here like everything else: with the envelope and an id. How large a body may be is
the middleware's.
"""

import asyncio
import fcntl
import json
import logging
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.contracts.ids import new_request_id
from service.contracts.replica import REQUEST_ID_HEADER
from service.cycle import CycleProtocol
from service.errors import ApiError, HeadersTooLarge, InvalidRequest, RequestTimeout

HEAD_BYTES = 64 << 10
"""Of a request's line and headers; also of whatever else is no body, such as the extensions of chunks and trailers."""
HEAD_FIELDS = 100
LEAST_BYTES_PER_SECOND = 1 << 10
"""A body that comes more slowly, while it is waited for, only keeps a connection busy. A client that takes its answer
more slowly, over the time to a cut and with all that time something to take, is cut off; replicas expect the same of
gateways.
"""
WRITE_BUFFER_BYTES = 16 << 10
"""Over this, an application that sends has to wait."""
UNSENT_BYTES = 32 << 10
"""The same for the kernel's buffer, which would grow to megabytes. What the client's side can take is not in it."""
UNWANTED_BYTES = 64 << 20
"""How much of a body is taken that is answered already: enough for a client that reads no answer before all is sent.

A body without an end is cut off there.
"""
UNWANTED_SECONDS = 60.0
"""And for how long."""
LINGER_SECONDS = 2.0
"""What comes after a refusal is dropped for so long. Closed at once, a connection may lose the answer on its way."""
LOOKS = 4
"""How often in the time to a cut a look is taken. A timer per connection costs nothing per write."""

log = logging.getLogger("service.connections")


class Counted:
    """A transport that knows how much has been written to it. What the kernel counts is not told on every system."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._write = transport.write
        self.is_closing = transport.is_closing
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)
        self._write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(CycleProtocol):
    """uvicorn makes one for each connection. The seconds are the class's, since uvicorn makes the instances.

    `_overdue` is the one timer of what has to come from the client next: a head, more of a body, the end of one. An
    application finds this as `connection` in its request's state, may set `when_lost` and is then told when it is.
    """

    stall_seconds = 30.0
    head_seconds = 15.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.lost = False
        self.when_lost: Callable[[], None] | None = None
        self._counted = Counted(transport)
        super().connection_made(cast(asyncio.Transport, self._counted))
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._socket = transport.get_extra_info("socket")
        if self._socket.family != socket.AF_UNIX:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self._unwanted = 0
        self._due = 0
        """What had been written at the last look."""
        self._taken: deque[int] = deque(maxlen=LOOKS + 1)
        """What the client had taken at each look since which something has waited for it all the time."""
        self._next_look = self.loop.call_later(self.stall_seconds / LOOKS, self._look)
        self._head_bytes = self._body_bytes = 0
        self._in_body = self._held_up = self._refused = False
        self._overdue: asyncio.TimerHandle | None = None
        self._wait(self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._next_look.cancel()
        self._in_time()
        super().connection_lost(exc)
        self._end()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._refused:
            self._drop(data)
            return
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
            if self._head_bytes > HEAD_BYTES:
                raise HeadersTooLarge
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except (httptools.HttpParserError, HeadersTooLarge) as error:
            self._refuse(_problem(error))
        answering = self.cycle and not self.cycle.response_complete
        # A whole request, which most are, needs no timer: uvicorn has one for connections that are idle after it.
        if self._overdue is None and not self._refused and (self._in_body or not answering):
            self._wait(self.stall_seconds if self._in_body else self.head_seconds)

    def on_headers_complete(self) -> None:
        large = self._head_bytes > HEAD_BYTES and self._size_of_head() > HEAD_BYTES
        if large or len(self.headers) > HEAD_FIELDS:
            raise HeadersTooLarge
        self._in_time()
        self._head_bytes = 0
        self._in_body = True
        if not self._offered():
            cast(dict[str, Any], self.scope)["state"]["connection"] = self
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        if self.cycle.response_complete:
            self._drop(body)
            return
        self._body_bytes += len(body)
        super().on_body(body)
        self._held_up = self._held_up or self.flow.read_paused

    def on_message_complete(self) -> None:
        self._unwanted = 0
        self._head_bytes = 0
        self._in_body = False
        self._in_time()
        if not self._offered():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body:
            self._wait(UNWANTED_SECONDS)

    def _end(self) -> None:
        """Nobody is there any more to answer what was asked."""
        self.lost = True
        if self.when_lost is not None:
            self.when_lost()

    def _size_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _offered(self) -> bool:
        """Whether the client would speak another protocol, HTTP/2 or WebSocket; the parser leaves it here then."""
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _decline(self, rest: bytes) -> None:
        """Reads the request again as if nothing had been offered: the parser takes it to be without a body."""
        fields = [field for field in self.headers if field[0] not in (b"upgrade", b"connection")]
        if not self.parser.should_keep_alive():
            fields.append((b"connection", b"close"))
        version = self.parser.get_http_version().encode()
        head = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        head += [b"%s: %s" % field for field in fields]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*head, b"", rest]))

    def _refuse(self, problem: ApiError) -> None:
        cycle = self.cycle
        if cycle and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            self._end()
            if cycle.response_started:
                self.transport.abort()
                return
        body = json.dumps(problem.body()).encode()
        fields = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (REQUEST_ID_HEADER.encode(), new_request_id().encode()),
            (b"connection", b"close"),
        ]
        head = b"".join([STATUS_LINE[problem.status], *(b"%s: %s\r\n" % field for field in fields), b"\r\n"])
        self._refused = True
        self.transport.write(head + body)
        self.transport.write_eof()
        self._wait(LINGER_SECONDS)

    def _drop(self, data: bytes) -> None:
        self._unwanted += len(data)
        if self._unwanted > UNWANTED_BYTES:
            self.transport.close()

    def _wait(self, seconds: float) -> None:
        self._in_time()
        # Held up by the application is not held up by the client.
        self._body_bytes, self._held_up = 0, self.flow.read_paused
        self._overdue = self.loop.call_later(seconds, self._end_overdue)

    def _in_time(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _end_overdue(self) -> None:
        self._overdue = None
        if self._refused or (self._in_body and self.cycle.response_complete):
            self.transport.close()
        elif self._in_body:
            enough = self._body_bytes >= LEAST_BYTES_PER_SECOND * self.stall_seconds
            if enough or self._held_up or self.cycle.response_started:
                self._wait(self.stall_seconds)
            else:
                self._refuse(RequestTimeout("The request body did not arrive in time."))
        elif self._head_bytes:
            self._refuse(RequestTimeout(f"The request's headers did not arrive within {self.head_seconds:g} seconds."))
        else:
            self.transport.close()

    def _look(self) -> None:
        written = self._counted.written
        taken = written - self.transport.get_write_buffer_size() - _unacknowledged(self._socket.fileno())
        if taken >= self._due:
            # What came since the last look is on its way to it, however little comes.
            self._taken.clear()
        self._taken.append(taken)
        self._due = written
        least = LEAST_BYTES_PER_SECOND * self.stall_seconds
        if len(self._taken) > LOOKS and taken - self._taken[0] < least:
            log.warning("a client that takes too little of its answer was cut off")
            # With a reset, or the kernel would go on trying to deliver what it holds.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self._next_look = self.loop.call_later(self.stall_seconds / LOOKS, self._look)


def connections(stall_seconds: float, head_seconds: float = Connection.head_seconds) -> type[Connection]:
    """The class to give to uvicorn as `http`. Pass `ws="none"` with it: no other protocol is spoken."""
    return type("Connection", (Connection,), {"stall_seconds": stall_seconds, "head_seconds": head_seconds})


def _problem(error: Exception) -> ApiError:
    # The parser wraps what its callbacks raise.
    cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
    return cause if isinstance(cause, ApiError) else InvalidRequest("This is no HTTP request that can be read.")


def _unacknowledged(descriptor: int) -> int:
    """Bytes in the kernel that the client's side has not taken."""
    return struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
