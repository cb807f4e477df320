"""The server's side of one connection to a replica: how little of an answer waits in it, and for how long.

What is beyond that waits in vLLM, whose memory of an answer does not grow with its readers' pace. A reader, as a rule a
gateway, that leaves an answer waiting and takes less than MIN_RATE of it over `stall_seconds` is cut off, which looks
to vLLM like a client that left.
"""

import asyncio
import fcntl
import logging
import socket
import struct
import termios
from collections import deque
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

WRITE_BUFFER_BYTES = 16 << 10
"""Over this, an answer that is sent has to wait. With what a gateway holds it stays under 256 KiB for each reader."""
SEND_BUFFER_BYTES = 16 << 10
"""The kernel's buffer, which it doubles and which would grow to megabytes."""
MIN_RATE = 1 << 10
"""Bytes a second. Gateways expect the same of their clients."""
LOOKS = 10
"""How many looks there are in the time to a cut. A timer per connection costs nothing per write."""

logger = logging.getLogger("weft.connections")


class Counted:
    """A transport that knows how much has been written to it. What the kernel itself counts is not told everywhere."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """uvicorn makes one for each connection. `stall_seconds` is the class's, since uvicorn makes the instances."""

    stall_seconds = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._counted = Counted(transport)
        super().connection_made(cast(asyncio.Transport, self._counted))
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._socket = transport.get_extra_info("socket")
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._due = 0
        """What had been written at the last look."""
        self._taken: deque[int] = deque(maxlen=LOOKS + 1)
        """What had been taken at each look since which something has been waiting all the time."""
        self._next_look = self.loop.call_later(self.stall_seconds / LOOKS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._next_look.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        written = self._counted.written
        taken = written - self.transport.get_write_buffer_size() - _unacknowledged(self._socket.fileno())
        if taken >= self._due:
            # What came since the last look is on its way, however slowly it comes.
            self._taken.clear()
        self._taken.append(taken)
        self._due = written
        if len(self._taken) > LOOKS and taken - self._taken[0] < MIN_RATE * self.stall_seconds:
            logger.warning("a reader that takes too little of its answer was cut off")
            # With a reset, or the kernel would go on trying to deliver what it holds.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self._next_look = self.loop.call_later(self.stall_seconds / LOOKS, self._look)


def connections(stall_seconds: float) -> type[Connection]:
    """The class to give to uvicorn."""
    return type("Connection", (Connection,), {"stall_seconds": stall_seconds})


def _unacknowledged(descriptor: int) -> int:
    """Bytes in the kernel that the reader's side has not taken."""
    return struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
