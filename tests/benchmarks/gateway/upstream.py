"""The fixed upstream: answers at once as vLLM does, or streams an event per engine step. As cheap as a process can be.

`python -m tests.benchmarks.gateway.upstream PORT`. Counts are in a stream's events only where they were asked for.
"""

import asyncio
import re
import sys
from functools import lru_cache

import uvloop

from tests.service.gateway.captured import CHAT_COUNTED, CHAT_PLAIN, CHAT_WHOLE
from tests.service.gateway.upstream import named

EVENTS = 200
STEP_SECONDS = 0.01
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
MODEL = re.compile(rb'"model": ?"([^"]+)"')
STREAM = re.compile(rb'"stream": ?true')
COUNTED = b"continuous_usage_stats"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
HEALTH = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


class Replica(asyncio.Protocol):
    """One connection. Requests on it come one after the other."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        length = LENGTH.search(self._received, 0, end)
        whole = end + (int(length[1]) if length else 0)
        if len(self._received) < whole:
            return
        body, self._received = self._received[end:whole], self._received[whole:]
        self._answer(body)

    def _answer(self, body: bytes) -> None:
        asked = MODEL.search(body)
        if asked is None:
            self._transport.write(HEALTH)
        elif STREAM.search(body):
            self._transport.write(STREAM_HEAD)
            self._step(_events(asked[1].decode(), COUNTED in body), 0)
        else:
            self._transport.write(_whole(asked[1].decode()))

    def _step(self, events: list[bytes], place: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(events[place])
        if place + 1 < len(events):
            asyncio.get_running_loop().call_later(STEP_SECONDS, self._step, events, place + 1)


@lru_cache
def _whole(model: str) -> bytes:
    body = named(CHAT_WHOLE, model)
    return HEAD % len(body) + body


@lru_cache
def _events(model: str, counted: bool) -> list[bytes]:
    """In chunks of HTTP, one event each; what ends the stream goes with the last."""
    shown = CHAT_COUNTED if counted else CHAT_PLAIN
    first, middle, _, last, final, done = (named(event, model) for event in shown)
    events = [first, *[middle] * (EVENTS - 2), last]
    end = [final, done] if counted else [done]
    return [*(map(_chunk, events)), b"".join(map(_chunk, end)) + b"0\r\n\r\n"]


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Replica, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
