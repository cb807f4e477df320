"""The server's side of one connection to a replica: little of an answer waits in it for a gateway that does not read.

What is beyond that waits in vLLM, whose memory of an answer does not grow with its readers' pace. How long it may wait
is for the admission.
"""

import asyncio
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

WRITE_BUFFER_BYTES = 16 << 10
"""Over this, an answer that is sent has to wait. With what a gateway holds it stays under 256 KiB for each reader."""
SEND_BUFFER_BYTES = 16 << 10
"""The kernel's buffer, which it doubles and which would grow to megabytes."""


class Connection(HttpToolsProtocol):
    """Takes the place of uvicorn's own class before the server takes its first connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
