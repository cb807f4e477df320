"""One reader's connection to a replica: who takes too little of what waits for it is cut off, and nobody else is."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from inference import connections as module
from inference.connections import SEND_BUFFER_BYTES, WRITE_BUFFER_BYTES, connections
from tests.conftest import free_port
from tests.inference.stand_in import until

STALL_SECONDS = 0.5
SMALL = 4096
RATE = 64 << 10
"""In place of the real one, which is less than a kernel lets through at a time in half a second."""
EVENT = b"data: x\n\n".ljust(256)


@pytest.fixture(autouse=True)
def rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_RATE", RATE)


class Flood:
    """An application that sends events for as long as somebody takes them, or `pause` seconds apart."""

    def __init__(self, pause: float = 0.0) -> None:
        self.sent = 0
        self.left = asyncio.Event()
        self._pause = pause

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        gone = asyncio.create_task(_disconnected(receive))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.done():
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})
            self.sent += len(EVENT)
            await asyncio.sleep(self._pause)
        self.left.set()


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def serving(flood: Flood) -> AsyncIterator[socket.socket]:
    """A connection whose request the flood answers."""
    config = uvicorn.Config(
        flood, port=free_port(), http=connections(STALL_SECONDS), log_level="warning", lifespan="off"
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        reader.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(reader, ("127.0.0.1", config.port))
        await loop.sock_sendall(reader, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        yield reader
    await until(flood.left.is_set)
    server.should_exit = True
    await running


async def read(reader: socket.socket, rate: float, seconds: float) -> None:
    """Takes so many bytes a second, in small parts."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        await loop.sock_recv(reader, max(1, int(rate * 0.02)))
        await asyncio.sleep(0.02)


async def test_who_takes_nothing_is_cut_off_and_little_is_kept() -> None:
    flood = Flood()
    async with serving(flood):
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(5):
            await flood.left.wait()
        assert STALL_SECONDS <= loop.time() - began < 2 * STALL_SECONDS + 0.5
        assert flood.sent <= WRITE_BUFFER_BYTES + 2 * SEND_BUFFER_BYTES + SMALL


async def test_who_takes_a_trickle_is_cut_off() -> None:
    """One event after another, each long before it would count as stalled by itself."""
    flood = Flood()
    async with serving(flood) as reader:
        reading = asyncio.create_task(read(reader, RATE / 4, 60))
        async with asyncio.timeout(5):
            await flood.left.wait()
        reading.cancel()


async def test_who_reads_slowly_but_reads_is_not() -> None:
    flood = Flood()
    async with serving(flood) as reader:
        await read(reader, 8 * RATE, 3 * STALL_SECONDS)
        assert not flood.left.is_set()


async def test_who_takes_all_of_a_slow_answer_is_not() -> None:
    """Far fewer bytes a second than the least, and none of them waits."""
    flood = Flood(pause=2 * STALL_SECONDS / 3)
    async with serving(flood) as reader:
        await read(reader, 1 << 20, 3 * STALL_SECONDS)
        assert not flood.left.is_set()
        assert flood.sent < RATE * STALL_SECONDS
