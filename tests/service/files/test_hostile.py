"""What is sent to do harm is refused soon, by a real service process whose time and memory are measured."""

import contextlib
import gzip
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from service.settings import ServiceSettings
from tests.service.test_app_process import serving, variables

GIGABYTE = 1 << 30
MEGABYTE = 1 << 20
LINE = b'{"prompt":"a","completion":"b"}\n'
BEGIN = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f.jsonl"\r\n\r\n'
DATA = b'--x\r\nContent-Disposition: form-data; name="data"; filename="f"\r\n\r\n'
END = b"\r\n--x--\r\n"


class Victim:
    """A service process of its own, with a project's key."""

    def __init__(self, process: psutil.Process, port: int, admin_key: str) -> None:
        self.process, self.port = process, port
        admin = {"authorization": f"Bearer {admin_key}"}
        base = f"http://127.0.0.1:{port}/v1/organization/projects"
        project = httpx2.post(base, json={"name": "hostile"}, headers=admin).json()["id"]
        key = httpx2.post(f"{base}/{project}/api_keys", json={"name": "k"}, headers=admin).json()["value"]
        self.headers = {"authorization": f"Bearer {key}"}

    def post(self, path: str, body: Iterator[bytes], **headers: str) -> tuple[int, Any]:
        """Sends until it is answered, as a client does that does not care."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.putrequest("POST", path)
            for name, value in {**self.headers, **headers}.items():
                connection.putheader(name.replace("_", "-"), value)
            chunked = "content_length" not in headers
            if chunked:
                connection.putheader("transfer-encoding", "chunked")
            connection.endheaders()
            self._send(connection, body, chunked)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    @staticmethod
    def _send(connection: http.client.HTTPConnection, body: Iterator[bytes], chunked: bool) -> None:
        assert isinstance(connection.sock, socket.socket)
        try:
            for piece in body:
                connection.sock.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            if chunked:
                connection.sock.sendall(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # answered already


class Cost:
    """CPU seconds of the process and its children, and by how many bytes they grew at most, all together."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._done = process, threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self.seconds, self.bytes = 0.0, 0

    def __enter__(self) -> "Cost":
        self._before, self._rss = self._cpu(), self._memory()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = self._cpu() - self._before
        self._done.set()
        self._watcher.join()

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system + times.children_user + times.children_system

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.bytes = max(self.bytes, self._memory() - self._rss)

    def _memory(self) -> int:
        """By what the kernel says of each thread's children: looking through all processes would take its time."""
        total = self._process.memory_info().rss
        for listed in Path(f"/proc/{self._process.pid}/task").glob("*/children"):
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                total += sum(self._memory_of(psutil.Process(int(child))) for child in listed.read_text().split())
        return total

    def _memory_of(self, child: psutil.Process) -> int:
        # Until it is another program, a child's memory is its parent's.
        return child.memory_info().rss if child.cmdline() != self._process.cmdline() else 0


@pytest.fixture(scope="module")
def victim(service_settings: ServiceSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    environment = variables(service_settings)
    with serving(environment, tmp_path_factory.mktemp("victim") / "log") as process:
        made = Victim(psutil.Process(process.pid), service_settings.port, environment["WEFT_ADMIN_KEY"])
        # The first request of a kind imports and opens what the later ones only use.
        made.post("/v1/files", form(LINE), content_type="multipart/form-data; boundary=x")
        yield made


def form(*pieces: bytes, name: bytes = FILE) -> Iterator[bytes]:
    return iter([BEGIN, name, *pieces, END])


def endless(size: int, name: bytes = FILE) -> Iterator[bytes]:
    yield BEGIN + name
    piece = LINE * (MEGABYTE // len(LINE))
    for _ in range(size // len(piece)):
        yield piece


def chat(content: str) -> bytes:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]
    return json.dumps({"messages": messages}).encode()


def deep(count: int) -> bytes:
    return b'{"messages":' + b"[" * count + b"]" * count + b"}"


MULTIPART = "multipart/form-data; boundary=x"
BAD_LINES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a line of 100 MB": (lambda: b'{"prompt":"' + b"x" * (100 * MEGABYTE) + b'"}\n', "line_too_long"),
    "100 MB without a line": (lambda: b"x" * (100 * MEGABYTE), "line_too_long"),
    "100 MB of empty lines": (lambda: b"\n" * (100 * MEGABYTE) + LINE, "blank_line"),
    "100 MB of bad lines": (lambda: b"{\n" * (50 * MEGABYTE), "invalid_json"),
    "200,000 deep": (lambda: deep(200_000) + b"\n", "invalid_json"),
    "100 MB of line ends": (lambda: b"\r\n" * (50 * MEGABYTE) + LINE, "blank_line"),
    "a NUL": (lambda: chat("a\0b"), "nul_character"),
    "NUL bytes": (lambda: b"\0" * MEGABYTE, "nul_character"),
    "a lone surrogate": (lambda: rb'{"prompt":"\ud800","completion":"b"}', "invalid_json"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_hostile_line_is_refused_soon(victim: Victim, kind: str) -> None:
    make, code = BAD_LINES[kind]
    content = make()
    pieces = [content[start : start + MEGABYTE] for start in range(0, len(content), MEGABYTE)]
    length = sum(map(len, form(*pieces)))
    with Cost(victim.process) as cost:
        answer = victim.post("/v1/files", form(*pieces), content_type=MULTIPART, content_length=str(length))
    assert (answer[0], answer[1]["error"]["code"]) == (400, "invalid_training_file")
    assert answer[1]["error"]["problems"][0]["code"] == code
    assert cost.seconds <= 1.0
    assert cost.bytes <= 100 * MEGABYTE


REFUSED: dict[str, tuple[str, Callable[[], Iterator[bytes]], dict[str, str], int]] = {
    "10 GB that are announced": (
        "/v1/files",
        lambda: endless(10 * GIGABYTE),
        {"content_type": MULTIPART, "content_length": str(10 * GIGABYTE)},
        413,
    ),
    "10 GB that are not": ("/v1/files", lambda: endless(10 * GIGABYTE), {"content_type": MULTIPART}, 413),
    "a part of 10 GB": (
        "/v1/uploads/upload_x/parts",
        lambda: endless(10 * GIGABYTE, DATA),
        {"content_type": MULTIPART, "content_length": str(10 * GIGABYTE)},
        413,
    ),
    "a part of an upload that is not": (
        "/v1/uploads/upload_x/parts",
        lambda: endless(10 * GIGABYTE, DATA),
        {"content_type": MULTIPART},
        404,
    ),
    "a form with a header of 100 MB": (
        "/v1/files",
        lambda: iter([FILE[:-4], b"\r\nx-y: ", *[b"x" * MEGABYTE] * 100]),
        {"content_type": MULTIPART},
        400,
    ),
    "a form that begins with 50 MB of nothing": (
        "/v1/files",
        lambda: iter([b"\r\n" * MEGABYTE] * 25),
        {"content_type": MULTIPART},
        400,
    ),
    "a form of many fields": (
        "/v1/files",
        lambda: iter([(FILE.replace(b'; filename="f.jsonl"', b"") + b"\r\n") * 10_000] * 10),
        {"content_type": MULTIPART},
        400,
    ),
    "a gzip bomb": (
        "/v1/files",
        lambda: iter([gzip.compress(bytes(100 * MEGABYTE))]),
        {"content_type": MULTIPART, "content_encoding": "gzip"},
        415,
    ),
    "a body 200,000 deep": (
        "/v1/uploads",
        lambda: iter([deep(200_000)]),
        {"content_type": "application/json"},
        400,
    ),
    "a body of 10 GB": (
        "/v1/uploads",
        lambda: endless(10 * GIGABYTE),
        {"content_type": "application/json"},
        413,
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_hostile_body_is_refused_soon(victim: Victim, kind: str) -> None:
    path, make, headers, status = REFUSED[kind]
    body = make()
    with Cost(victim.process) as cost:
        answer = victim.post(path, body, **headers)
    assert answer[0] == status
    assert answer[1]["error"]["type"] == "invalid_request_error"
    assert cost.seconds <= 1.0
    assert cost.bytes <= 100 * MEGABYTE


HEADS: dict[str, Callable[[], Iterator[bytes]]] = {
    "one header of 40 MB": lambda: iter([b"x: ", *[b"x" * (64 << 10)] * 640]),
    "100,000 headers": lambda: iter([b"x: y\r\n" * 1000] * 100),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_hostile_head_is_refused_soon_from_anybody(victim: Victim, kind: str) -> None:
    with Cost(victim.process) as cost, socket.create_connection(("127.0.0.1", victim.port), timeout=60) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in HEADS[kind]():
                connection.sendall(piece)
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 431
        assert json.loads(response.read())["error"]["code"] == "headers_too_large"
        assert response.headers["x-request-id"]
    assert cost.seconds <= 1.0
    assert cost.bytes <= 100 * MEGABYTE


def test_after_all_that_it_still_works(victim: Victim) -> None:
    assert victim.post("/v1/files", form(LINE), content_type=MULTIPART)[0] == 200
