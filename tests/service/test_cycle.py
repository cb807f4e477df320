"""Answers on the wire: whole ones in one piece, lengths and headers that hold, connections kept or closed as asked."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from typing import Any

import pytest
import uvicorn

from service.connections import connections
from tests.conftest import free_port, wait_until

Open = Callable[[], Any]
LENGTH = (b"content-length", b"5")


class Scripted:
    """Sends what `messages` says for the path; `asked` are the scopes."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.messages: dict[str, list[dict[str, Any]]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope)
        for message in self.messages[scope["path"]]:
            await send(message)


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


@pytest.fixture(scope="module")
def app() -> Scripted:
    made = Scripted()
    made.messages = {
        "/whole": [start(LENGTH), body(b"hello")],
        "/parts": [start(LENGTH), body(b"he", more=True), body(b"llo")],
        "/stream": [start(), body(b"one", more=True), body(b"", more=True), body(b"two"), ],
        "/none": [start(status=204), body(b"")],
        "/empty": [start((b"content-length", b"0")), body(b"")],
        "/last": [start(LENGTH, (b"connection", b"close")), body(b"hello")],
        "/long": [start(LENGTH), body(b"hello, hello")],
        "/short": [start(LENGTH), body(b"he")],
        "/twice": [start(LENGTH), start(LENGTH)],
        "/split": [start((b"x", b"1\r\ny: 2")), body(b"")],
        "/headless": [body(b"hello")],
        "/a b": [start(LENGTH), body(b"hello")],
    }  # fmt: skip
    return made


@pytest.fixture(scope="module")
def connect(app: Scripted) -> Iterator[Open]:
    port = free_port()
    config = uvicorn.Config(app, port=port, http=connections(5.0), ws="none", log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=asyncio.run, args=(server.serve(),), name="cycle")
    thread.start()
    wait_until(lambda: server.started, what="it listens")

    @contextmanager
    def opened() -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as made:
            yield made

    yield opened
    server.should_exit = True
    thread.join(10)


def ask(connection: socket.socket, path: str, *, method: str = "GET", version: str = "1.1", more: str = "") -> None:
    connection.sendall(f"{method} {path} HTTP/{version}\r\nhost: x\r\n{more}\r\n".encode())


def answer(connection: socket.socket, method: str = "GET") -> tuple[int, bytes]:
    response = HTTPResponse(connection, method=method)
    response.begin()
    return response.status, response.read()


def test_an_answer_of_known_length_goes_out_in_one_piece(connect: Open) -> None:
    with connect() as connection:
        ask(connection, "/whole")
        assert connection.recv(1 << 16).endswith(b"\r\ncontent-length: 5\r\n\r\nhello")


@pytest.mark.parametrize(
    ("path", "told"),
    [("/whole", b"hello"), ("/parts", b"hello"), ("/stream", b"onetwo"), ("/none", b""), ("/empty", b"")],
)
def test_a_connection_is_kept_after_every_kind_of_answer(connect: Open, path: str, told: bytes) -> None:
    with connect() as connection:
        for _ in range(2):
            ask(connection, path)
            assert answer(connection)[1] == told


def test_the_answer_to_head_has_no_body(connect: Open) -> None:
    with connect() as connection:
        for path in ("/whole", "/stream"):
            ask(connection, path, method="HEAD")
            assert answer(connection, "HEAD") == (200, b"")
        ask(connection, "/whole")
        assert answer(connection) == (200, b"hello")


@pytest.mark.parametrize("asked", [{"version": "1.0"}, {"more": "connection: close\r\n"}, {"path": "/last"}])
def test_a_connection_ends_where_either_side_says_so(connect: Open, asked: dict[str, str]) -> None:
    with connect() as connection:
        ask(connection, **{"path": "/whole", **asked})
        told = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert b"\r\nconnection: close\r\n" in told
        assert told.count(b"connection:") == 1
        assert told.endswith(b"hello")


@pytest.mark.parametrize("path", ["/long", "/short", "/twice"])
def test_an_answer_that_is_not_as_it_was_said_to_be_is_cut_off(connect: Open, path: str) -> None:
    with connect() as connection:
        ask(connection, path)
        assert b"hello" not in b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.mark.parametrize("path", ["/split", "/headless"])
def test_what_cannot_be_an_answer_is_a_500(connect: Open, path: str) -> None:
    with connect() as connection:
        ask(connection, path)
        assert answer(connection)[0] == 500


def test_requests_sent_ahead_are_answered_in_their_order(connect: Open) -> None:
    with connect() as connection:
        for path in ("/parts", "/empty", "/stream"):
            ask(connection, path)
        read = connection.makefile("rb")
        told = b""
        while not told.endswith(b"\r\n0\r\n\r\n"):
            told += read.readline()
    assert told.index(b"hello") < told.index(b"content-length: 0") < told.index(b"one")


def test_a_path_is_given_as_text_and_as_it_came(app: Scripted, connect: Open) -> None:
    with connect() as connection:
        ask(connection, "/a%20b?c=%20d")
        assert answer(connection) == (200, b"hello")
    scope = app.asked[-1]
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b", b"/a%20b", b"c=%20d")
