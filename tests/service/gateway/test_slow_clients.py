"""Clients that read slowly or not at all: what they may hold, when they are cut off, and that nobody else notices."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import psutil
import pytest
import uvicorn
from aiohttp import web

from service import connections as connections_module
from service.connections import LEAST_BYTES_PER_SECOND, connections
from tests.conftest import free_port, wait_until
from tests.service.conftest import Service
from tests.service.gateway.captured import CHAT_WHOLE
from tests.service.gateway.conftest import Tenant, chat
from tests.service.gateway.test_breaks import connect
from tests.service.gateway.upstream import Upstream, endless, named

HELD = 256 << 10
SMALL = 4096
STALL_SECONDS = 1.0
WHOLE_BYTES = 4 << 20


@dataclass
class Flood:
    """An application that sends for as long as somebody takes it, and counts what was taken."""

    sent: int = 0
    left: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/whole":
            await send({"type": "http.response.body", "body": b"y" * WHOLE_BYTES})
        elif scope["path"] == "/slow":
            while self.sent < 64:
                await send({"type": "http.response.body", "body": b"y" * 16, "more_body": True})
                self.sent += 1
                await asyncio.sleep(STALL_SECONDS / 5)
        else:
            while self.sent < WHOLE_BYTES:
                await send({"type": "http.response.body", "body": b"y" * 4096, "more_body": True})
                self.sent += 4096
        await receive()
        self.left.set()


@pytest.fixture
def flood() -> Iterator[tuple[Flood, int]]:
    made, port = Flood(), free_port()
    config = uvicorn.Config(
        made, port=port, http=connections(STALL_SECONDS), ws="none", log_level="warning", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="flood")
    thread.start()
    wait_until(lambda: server.started, what="the server runs")
    yield made, port
    server.force_exit = server.should_exit = True
    thread.join(10)


def open_one(port: int, path: str, receive_buffer: int = SMALL) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(("127.0.0.1", port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    return connection


def stands_still(number: Callable[[], int]) -> bool:
    seen = number()
    time.sleep(0.2)
    return seen == number() > 0


def cut_off(connection: socket.socket) -> bool:
    """Whether the other end has dropped what it had not sent: a reset, after whatever had arrived."""
    connection.settimeout(5)
    try:
        while connection.recv(65536):
            continue
    except ConnectionResetError:
        return True
    return False


def test_of_a_client_that_reads_nothing_little_is_kept_in_process_and_kernel(flood: tuple[Flood, int]) -> None:
    application, port = flood
    with open_one(port, "/stream"):
        wait_until(lambda: stands_still(lambda: application.sent), seconds=5, what="the application is held back")
        assert application.sent <= HELD


def test_a_client_that_stops_reading_is_cut_off_and_one_that_reads_slowly_is_not(flood: tuple[Flood, int]) -> None:
    application, port = flood
    with open_one(port, "/stream") as connection:
        until, taken = time.monotonic() + 4 * STALL_SECONDS, 0
        while time.monotonic() < until:
            taken += len(connection.recv(2048))
            time.sleep(0.05)
        assert not application.left.is_set()
        assert taken < WHOLE_BYTES / 4, "it was a slow one"
        stopped = time.monotonic()
        wait_until(lambda: stands_still(lambda: application.sent), seconds=5, what="the application is held back")
        time.sleep(max(0.0, stopped + 3 * STALL_SECONDS - time.monotonic()))
        assert cut_off(connection)


def test_a_client_that_takes_a_trickle_is_cut_off(flood: tuple[Flood, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As slow as the one above that is not, where more is expected: in a second no kernel shows a slower one."""
    monkeypatch.setattr(connections_module, "LEAST_BYTES_PER_SECOND", 128 << 10)
    application, port = flood
    with open_one(port, "/stream") as connection:
        started = time.monotonic()
        while not application.left.is_set() and time.monotonic() < started + 10 * STALL_SECONDS:
            connection.recv(2048)
            time.sleep(0.05)
        assert STALL_SECONDS <= time.monotonic() - started < 3 * STALL_SECONDS
        assert application.left.is_set()


def test_a_client_that_takes_all_of_a_slow_answer_is_not_cut_off(flood: tuple[Flood, int]) -> None:
    """Far fewer bytes a second than the least, and none of them waits."""
    application, port = flood
    with open_one(port, "/slow") as connection:
        connection.settimeout(5)
        until, taken = time.monotonic() + 3 * STALL_SECONDS, 0
        while time.monotonic() < until:
            taken += len(connection.recv(65536))
        assert 0 < taken < LEAST_BYTES_PER_SECOND * STALL_SECONDS
        assert not application.left.is_set()


def test_an_answer_that_is_all_written_is_no_reason_to_keep_its_reader(flood: tuple[Flood, int]) -> None:
    _, port = flood
    with open_one(port, "/whole") as connection:
        time.sleep(3 * STALL_SECONDS)
        assert cut_off(connection)


def test_a_whole_answer_reaches_a_client_that_reads(flood: tuple[Flood, int]) -> None:
    _, port = flood
    assert len(httpx2.get(f"http://127.0.0.1:{port}/whole").content) == WHOLE_BYTES


def test_clients_that_do_not_read_hold_back_the_replica_hurt_nobody_and_are_cut_off(
    service: Service, upstream: Upstream, tenant: Tenant, http: httpx2.Client
) -> None:
    sent = 0

    async def talk(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        def counted() -> Any:
            nonlocal sent
            for event in endless(body["model"], content="y" * 4096):
                sent += len(event)
                yield event

        if not body.get("ignore_eos"):
            return await upstream.usual(request, body)
        return await upstream.stream(request, counted())

    upstream.script = talk
    before = psutil.Process().memory_info().rss
    body = chat(tenant.model, stream=True, ignore_eos=True)
    stalled = [connect(service, tenant.key, body, SMALL) for _ in range(16)]
    try:
        # The replica itself is held back once all buffers are full.
        wait_until(lambda: stands_still(lambda: sent), what="the flood stands still")
        assert psutil.Process().memory_info().rss - before < 32 << 20
        for _ in range(10):
            started = time.monotonic()
            answer = http.post("/chat/completions", json=chat(tenant.model, stream=True))
            assert answer.text.endswith("[DONE]\n\n")
            assert time.monotonic() - started < 1
        wait_until(lambda: upstream.aborted == 16, seconds=10, what="all are cut off")
    finally:
        for connection in stalled:
            connection.close()


def test_a_long_answer_in_one_piece_reaches_a_reader_and_no_stalled_client_keeps_it(
    service: Service, upstream: Upstream, tenant: Tenant, http: httpx2.Client
) -> None:
    words = "y" * WHOLE_BYTES

    async def long(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        whole = named(CHAT_WHOLE, body["model"]).replace(b"He said ", words.encode())
        return web.Response(body=whole, content_type="application/json")

    upstream.script = long
    answer = http.post("/chat/completions", json=chat(tenant.model))
    assert json.loads(answer.content)["choices"][0]["message"]["content"].startswith(words)
    with connect(service, tenant.key, chat(tenant.model), SMALL) as connection:
        wait_until(lambda: len(upstream.bodies) == 2, what="it is asked for")
        time.sleep(3 * service.settings.stall_seconds)
        assert cut_off(connection)
