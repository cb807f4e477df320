"""Clients that cost little: raw HTTP over kept connections, as fast as answers come or at a rate of their own.

An answer that is not a whole 200, or that does not say what is left of the rates, ends the benchmark.
"""

import asyncio
import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
EVENT = b"data: "
CHUNKED_END = b"0\r\n\r\n"
PROMPT = "Hi " * 100
LIMITS = (b"x-ratelimit-remaining-requests:", b"x-ratelimit-remaining-tokens:")
WARM_SECONDS = 1.0
LAST_SECONDS = 10.0
"""What was asked last has so long to be answered."""


@dataclass(frozen=True)
class Server:
    """One of those compared. One that is `limited` says in each answer what is left of the rates."""

    name: str
    port: int
    key: str
    model: str
    pid: int
    limited: bool = False

    def cpu(self) -> float:
        """Seconds, user and system, of the process and its children."""
        process = psutil.Process(self.pid)
        return sum(sum(each.cpu_times()[:2]) for each in (process, *process.children(recursive=True)))

    def rss(self) -> int:
        return psutil.Process(self.pid).memory_info().rss

    def request(self, *, stream: bool) -> bytes:
        """As the `openai` package sends it, more or less."""
        asked = {"model": self.model, "messages": [{"role": "user", "content": PROMPT}], "stream": stream}
        body = json.dumps(asked).encode()
        lines = (
            "POST /v1/chat/completions HTTP/1.1",
            f"host: 127.0.0.1:{self.port}",
            f"authorization: Bearer {self.key}",
            "content-type: application/json",
            "accept: application/json",
            "user-agent: OpenAI/Python 3.54.0",
            "x-stainless-lang: python",
            "x-stainless-retry-count: 0",
            f"content-length: {len(body)}",
        )
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class BadAnswer(Exception):
    """What a server sent that nothing can be measured with."""


@dataclass
class Tally:
    """What came back, and the first thing that should not have."""

    requests: int = 0
    events: int = 0
    seconds: list[float] = field(default_factory=list)
    failure: str | None = None

    def check(self) -> None:
        if self.failure is not None:
            raise BadAnswer(self.failure)


class Connection(asyncio.Protocol):
    """One request at a time; `free` is called after each answer."""

    def __init__(self, server: Server, request: bytes, tally: Tally, free: Callable[["Connection"], None]) -> None:
        self._server = server
        self._request = request
        self._tally = tally
        self._free = free
        self._received = bytearray()
        self._body: int | None = None
        """Its length, where the head has come; -1 where only its end says."""
        self._closed = False

    @classmethod
    async def open(
        cls, server: Server, request: bytes, tally: Tally, free: Callable[["Connection"], None]
    ) -> "Connection":
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(lambda: cls(server, request, tally, free), "127.0.0.1", server.port)
        return made

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closed:
            self._fail("a connection was closed")

    def ask(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def close(self) -> None:
        self._closed = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._body is None:
            self._begin()
        if self._body is None:
            return
        if self._body < 0:
            self._tally.events += self._received.count(EVENT)
            # Too little to hold what was counted.
            kept = self._received[-len(CHUNKED_END) :]
            self._received[:] = kept
            whole = kept == CHUNKED_END
        else:
            whole = len(self._received) >= self._body
        if whole:
            self._body = None
            self._received.clear()
            self._tally.requests += 1
            self._tally.seconds.append(time.perf_counter() - self._sent)
            self._free(self)

    def _begin(self) -> None:
        end = self._received.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head = bytes(self._received[:end]).lower()
        if not head.startswith(b"http/1.1 200") or (self._server.limited and not all(each in head for each in LIMITS)):
            self._fail(bytes(self._received).decode(errors="replace"))
            return
        length = LENGTH.search(head)
        self._body = int(length[1]) if length else -1
        del self._received[:end]

    def _fail(self, why: str) -> None:
        self._tally.failure = self._tally.failure or f"{self._server.name}: {why}"


@dataclass(frozen=True)
class Cost:
    """What a server did in `cpu` seconds of processor time, `wall` seconds on the clock."""

    requests: int
    events: int
    cpu: float
    wall: float


async def saturated(server: Server, *, stream: bool, clients: int, seconds: float) -> Cost:
    """Each client asks anew as soon as it is answered."""
    tally, over = Tally(), False

    def again(connection: Connection) -> None:
        if not over:
            connection.ask()

    asked = server.request(stream=stream)
    connections = [await Connection.open(server, asked, tally, again) for _ in range(clients)]
    try:
        for connection in connections:
            connection.ask()
        await asyncio.sleep(WARM_SECONDS)
        before, began = server.cpu(), time.perf_counter()
        requests, events = tally.requests, tally.events
        await asyncio.sleep(seconds)
        tally.check()
        wall = time.perf_counter() - began
        return Cost(tally.requests - requests, tally.events - events, server.cpu() - before, wall)
    finally:
        over = True
        for connection in connections:
            connection.close()


async def steady(server: Server, *, rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds of each answer where requests come at random moments, `rate` in a second, whatever is answered."""
    tally, pool, every = Tally(), list[Connection](), list[Connection]()
    asked, chance = server.request(stream=False), random.Random(seed)
    warm = asyncio.get_running_loop().time() + WARM_SECONDS / 2
    end = warm + seconds
    at = asyncio.get_running_loop().time()
    try:
        while at < end:
            at += chance.expovariate(rate)
            if at > warm > 0:
                tally.seconds.clear()
                warm = 0
            left = at - asyncio.get_running_loop().time()
            if left > 0:
                await asyncio.sleep(left)
            if not pool:
                every.append(await Connection.open(server, asked, tally, pool.append))
                pool.append(every[-1])
            pool.pop().ask()
        for _ in range(100):
            if len(pool) == len(every):
                break
            await asyncio.sleep(LAST_SECONDS / 100)
        tally.check()
        if len(pool) < len(every):
            raise BadAnswer(f"{server.name} left {len(every) - len(pool)} requests unanswered")
        return tally.seconds
    finally:
        for connection in every:
            connection.close()
