"""What a client has to send in time, and what it is told where that is too much, too late or no HTTP."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from typing import Any

import pytest
import uvicorn

from service import connections as module
from service.connections import HEAD_BYTES, HEAD_FIELDS, connections
from tests.conftest import free_port, wait_until

SECONDS = 0.3
Open = Callable[[], socket.socket]


class Echo:
    """Answers with the method, the path and the length of the body: `/streams` begins to answer before it has the body,
    `/early` answers without it, `/busy` lets it wait.
    """

    def __init__(self) -> None:
        self.ends: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": []}
        if scope["path"] == "/streams":
            await send(start)
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        if scope["path"] == "/busy":
            await asyncio.sleep(SECONDS * 2.5)
        taken, more = 0, scope["path"] != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.ends.append(scope["path"])
                return
            taken += len(message["body"])
            more = message["more_body"]
        if scope["path"] != "/streams":
            await send(start)
        await send({"type": "http.response.body", "body": f"{scope['method']} {scope['path']} {taken}".encode()})


@pytest.fixture(scope="module")
def echo() -> Echo:
    return Echo()


@pytest.fixture(scope="module")
def connect(echo: Echo) -> Iterator[Open]:
    port = free_port()
    protocol = connections(stall_seconds=SECONDS, head_seconds=SECONDS)
    config = uvicorn.Config(echo, port=port, http=protocol, ws="none", log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="echo")
    thread.start()
    wait_until(lambda: server.started, what="the server runs")
    yield lambda: socket.create_connection(("127.0.0.1", port), timeout=5)
    server.force_exit = server.should_exit = True
    thread.join(10)


@contextmanager
def answer_to(connect: Open, *parts: bytes) -> Iterator[HTTPResponse]:
    with connect() as connection:
        for part in parts:
            connection.sendall(part)
        response = HTTPResponse(connection)
        response.begin()
        yield response


def check_refusal(connect: Open, *parts: bytes, status: int, code: str) -> None:
    """The envelope with an id, and the end of the connection."""
    with answer_to(connect, *parts) as response:
        assert response.status == status
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-request-id"].startswith("req_")
        assert response.headers["connection"] == "close"
        error = json.loads(response.read())["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["code"], error["type"]) == (code, "invalid_request_error")


HEAD = b"POST /a HTTP/1.1\r\nhost: x\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        (b"GET / HTTP/1.1\r\nx: " + b"a" * HEAD_BYTES + b"\r\n\r\n",),
        (b"GET / HTTP/1.1\r\nx: ", *[b"a" * 8192] * 64),
        (b"GET /" + b"a" * HEAD_BYTES + b" HTTP/1.1\r\n\r\n",),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (HEAD_FIELDS + 1) + b"\r\n",),
        (b"\r\n" * HEAD_BYTES,),
        (CHUNKED + b"5;x=", *[b"a" * 8192] * 64),
        (CHUNKED + b"0\r\nx: ", *[b"a" * 8192] * 64),
    ],
    ids=["one header", "in pieces", "address", "fields", "empty lines", "chunk extension", "trailer"],
)
def test_a_head_without_an_end_is_a_431(connect: Open, parts: tuple[bytes, ...]) -> None:
    check_refusal(connect, *parts, status=431, code="headers_too_large")


def test_a_head_up_to_the_limits_is_taken(connect: Open) -> None:
    fields = [b"a: b\r\n"] * (HEAD_FIELDS - 2) + [b"x: " + b"a" * (HEAD_BYTES - 1000) + b"\r\n"]
    with answer_to(connect, b"GET /b HTTP/1.1\r\nhost: x\r\n", *fields, b"\r\n") as response:
        assert response.read() == b"GET /b 0"


def test_bodies_and_heads_of_many_requests_are_no_head(connect: Open) -> None:
    requests = (HEAD + b"content-length: 100000\r\n\r\n" + b"x" * 100_000) * 3
    with connect() as connection:
        for _ in range(2):
            connection.sendall(requests)
            received = b""
            while received.count(b"POST /a 100000") < 3:
                received += connection.recv(65536)


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"CONNECT a:80 HTTP/1.1\r\n\r\n", CHUNKED + b"no length\r\n"]
)
def test_what_is_no_http_is_a_400(connect: Open, sent: bytes) -> None:
    check_refusal(connect, sent, status=400, code="invalid_request")


@pytest.mark.parametrize("sent", [HEAD, b"\r\n", b"P"])
def test_a_head_that_does_not_end_is_a_408(connect: Open, sent: bytes) -> None:
    check_refusal(connect, sent, status=408, code="request_timeout")


def test_a_connection_on_which_nothing_is_asked_is_closed(connect: Open) -> None:
    with connect() as connection:
        assert connection.recv(1) == b""


def test_the_head_of_a_later_request_has_to_end_too(connect: Open) -> None:
    with connect() as connection:
        connection.sendall(b"GET /b HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(65536).endswith(b"0\r\n\r\n")
        connection.sendall(b"GET /c HTTP/1.1\r\nhost: x\r\n")
        response = HTTPResponse(connection)
        response.begin()
        assert response.status == 408


@pytest.mark.parametrize("pause", [5.0, SECONDS / 4], ids=["stands still", "trickles"])
def test_a_body_that_does_not_arrive_is_a_408(echo: Echo, connect: Open, pause: float) -> None:
    echo.ends.clear()
    with connect() as connection:
        connection.sendall(HEAD + b"content-length: 1000\r\n\r\n")
        done = threading.Event()

        def trickle() -> None:
            while not done.wait(pause):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

        trickling = threading.Thread(target=trickle)
        trickling.start()
        try:
            response = HTTPResponse(connection)
            response.begin()
            assert response.status == 408
            assert json.loads(response.read())["error"]["code"] == "request_timeout"
            assert response.headers["x-request-id"]
        finally:
            done.set()
            trickling.join()
    wait_until(lambda: echo.ends == ["/a"], what="the application knows that its client is gone")


def test_a_body_that_comes_steadily_may_take_longer(connect: Open) -> None:
    with connect() as connection:
        connection.sendall(HEAD + b"content-length: 10240\r\n\r\n")
        pauses = threading.Event()
        for _ in range(10):
            pauses.wait(SECONDS / 5)
            connection.sendall(b"x" * 1024)
        response = HTTPResponse(connection)
        response.begin()
        assert response.read() == b"POST /a 10240"


def test_a_body_may_wait_for_the_application(connect: Open) -> None:
    body = b"x" * (1 << 20)
    with answer_to(
        connect, HEAD.replace(b"/a", b"/busy") + b"content-length: %d\r\n\r\n" % len(body), body
    ) as response:
        assert response.read() == b"POST /busy %d" % len(body)


def test_the_rest_of_an_answered_body_is_not_waited_for_long(connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNWANTED_SECONDS", SECONDS)
    with connect() as connection:
        connection.sendall(HEAD.replace(b"/a", b"/early") + b"content-length: 10\r\n\r\nx")
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert b"POST /early 0" in received


def test_a_begun_answer_is_cut_off_rather_than_mixed_with_a_refusal(connect: Open) -> None:
    with connect() as connection:
        connection.sendall(CHUNKED.replace(b"/a", b"/streams"))
        received = connection.recv(65536)
        connection.sendall(b"no length\r\n")
        while piece := connection.recv(65536):
            received += piece
    assert received.count(b"HTTP/1.1") == 1
    assert received.endswith(b"begun\r\n"), "without the last chunk, so that it is seen to be no whole answer"


@pytest.mark.parametrize("offer", [b"h2c", b"websocket"])
def test_an_offer_of_another_protocol_is_not_taken_up(connect: Open, offer: bytes) -> None:
    offered = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: " + offer + b"\r\ncontent-length: 5\r\n"
    with connect() as connection:
        connection.sendall(HEAD + offered)
        connection.sendall(b"\r\nhe")
        connection.sendall(b"lloGET /b HTTP/1.1\r\nhost: x\r\n\r\n")
        received = b""
        while b"GET /b 0" not in received:
            received += connection.recv(65536)
    assert b"POST /a 5" in received
