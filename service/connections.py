"""The server's side of one client connection: how much may wait to be sent on it, and for how long.

Applications wait for room by themselves (uvicorn's flow control); this bounds what is written when there is none, in
this process and in the kernel, and cuts a client off that takes nothing, even where its answer is all written already.
"""

import asyncio
import fcntl
import logging
import socket
import struct
import termios

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

WRITE_BUFFER_BYTES = 16 << 10
"""Over this, an application that sends has to wait."""
UNSENT_BYTES = 32 << 10
"""The same for the kernel's buffer, which would grow to megabytes. What the client's side can take is not in it."""
UNWANTED_BYTES = 64 << 20
"""How much of a body is taken that is answered already: enough for a client that reads no answer before all is sent.

A body without an end is cut off there.
"""
LOOKS = 4
"""How often in the time to a cut a look is taken. A timer per connection costs nothing per write."""

log = logging.getLogger("service.connections")


class Connection(HttpToolsProtocol):
    """uvicorn makes one for each connection. `stall_seconds` is the class's, since uvicorn makes the instances."""

    stall_seconds = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._socket = transport.get_extra_info("socket")
        if self._socket.family != socket.AF_UNIX:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self._unwanted = 0
        self._unsent = 0
        self._looks_without_progress = 0
        self._next_look = self.loop.call_later(self.stall_seconds / LOOKS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._next_look.cancel()
        super().connection_lost(exc)

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            self._unwanted += len(body)
            if self._unwanted > UNWANTED_BYTES:
                self.transport.close()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unwanted = 0
        super().on_message_complete()

    def _look(self) -> None:
        unsent = self.transport.get_write_buffer_size() + _unacknowledged(self._socket.fileno())
        # While a client reads at all, what waits for it changes from look to look.
        stalled = unsent > 0 and unsent == self._unsent
        self._looks_without_progress = self._looks_without_progress + 1 if stalled else 0
        self._unsent = unsent
        if self._looks_without_progress >= LOOKS:
            log.warning("a client that does not read its answer was cut off")
            # With a reset, or the kernel would go on trying to deliver what it holds.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self._next_look = self.loop.call_later(self.stall_seconds / LOOKS, self._look)


def connections(stall_seconds: float) -> type[Connection]:
    """The class to give to uvicorn as `http`."""
    return type("Connection", (Connection,), {"stall_seconds": stall_seconds})


def _unacknowledged(descriptor: int) -> int:
    """Bytes in the kernel that the client's side has not taken."""
    return struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
