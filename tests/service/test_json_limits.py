"""JSON bodies that are made to cost much are refused for little."""

import socket
import time
from collections.abc import Callable, Iterator

import httpx2
import pytest

from tests.service.conftest import Service

DEEP = b'{"a":' * 200_000 + b"1" + b"}" * 200_000
ARRAYS = b'{"model":"weft-tiny","metadata":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
DIGITS = b'{"model":"weft-tiny","seed":' + b"9" * 1_000_000 + b"}"
BODIES = {"deep objects": DEEP, "deep arrays": ARRAYS, "a huge number": DIGITS}


def many_keys(limit: int) -> bytes:
    """As many unknown names as a body may hold."""
    names = b",".join(b'"%x":1' % number for number in range(limit // 6))
    return b"{" + names[: names.rindex(b",", 0, limit - 2)] + b"}"


ROUTES = ["/fine_tuning/jobs", "/chat/completions", "/completions"]
LONG = 100 << 20


@pytest.fixture(scope="module")
def http(service: Service, make_project: Callable[[str], tuple[str, str]]) -> Iterator[httpx2.Client]:
    headers = {"authorization": f"Bearer {make_project('hostile')[1]}", "content-type": "application/json"}
    with httpx2.Client(base_url=f"{service.url}/v1", headers=headers, timeout=60) as client:
        client.get("/files").raise_for_status()
        yield client


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("kind", BODIES)
def test_a_hostile_body_costs_less_than_a_second(http: httpx2.Client, path: str, kind: str) -> None:
    """Measured for client and server together."""
    begun = time.process_time()
    answer = http.post(path, content=BODIES[kind])
    assert time.process_time() - begun < 1
    assert answer.status_code in (400, 413)
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert len(answer.content) < 2000


@pytest.mark.parametrize("path", ROUTES)
def test_as_many_unknown_names_as_fit_cost_little(service: Service, http: httpx2.Client, path: str) -> None:
    limit = service.settings.max_prompt_bytes if "completions" in path else service.settings.max_body_bytes
    begun = time.process_time()
    answer = http.post(path, content=many_keys(limit))
    # 0.3 s on an idle core, for client and server together; a core that is shared counts more for the same work.
    assert time.process_time() - begun < 2
    assert answer.status_code == 400
    assert len(answer.content) < 2000


def test_a_line_of_100_mb_is_refused_by_its_length(service: Service, http: httpx2.Client) -> None:
    head = f"POST /v1/fine_tuning/jobs HTTP/1.1\r\nhost: x\r\nauthorization: {http.headers['authorization']}\r\n"
    with socket.create_connection(("127.0.0.1", service.settings.port), timeout=20) as connection:
        connection.sendall(f"{head}content-type: application/json\r\ncontent-length: {LONG}\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_line_of_100_mb_without_a_length_is_refused_when_it_is_too_long(
    service: Service, http: httpx2.Client
) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        while sent < LONG:
            sent += 65536
            yield b'"' + b"x" * 65535

    begun = time.process_time()
    try:
        assert http.post("/fine_tuning/jobs", content=pieces()).status_code == 413
    except httpx2.TransportError:
        assert sent < LONG, "cut off before the end"
    assert time.process_time() - begun < 1
