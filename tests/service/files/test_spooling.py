"""How much may lie on the service's disk while it is taken in: one tenant never takes up what others need."""

import contextlib
import json
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from typing import Any

import httpx2
import pytest

from service.contracts.ids import ProjectId
from service.errors import ApiError
from service.files.spooling import IN_MEMORY_BYTES, Spooling
from service.settings import ServiceSettings
from tests.conftest import wait_until
from tests.service.conftest import Service

MEGABYTE = 1 << 20
ONE, OTHER, THIRD = ProjectId("one"), ProjectId("other"), ProjectId("third")
BEGIN = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    limits = {
        "max_uploads": 3,
        "max_project_uploads": 2,
        "max_spool_bytes": 30 * MEGABYTE,
        "max_project_spool_bytes": 20 * MEGABYTE,
        "max_unannounced_bytes": 5 * MEGABYTE,
        "max_storage_bytes": 8 * MEGABYTE,
        "spool_reserve_bytes": 0,
    }
    return service_settings.model_copy(update=limits)


def refusal(spooling: Spooling, project: ProjectId, size: int | None) -> tuple[int, str | None, str] | None:
    try:
        with spooling.room(project, size):
            return None
    except ApiError as error:
        return error.status, error.code, error.headers["Retry-After"]


PROJECT_FULL = (429, "too_many_uploads", "2")
FULL = (503, "storage_unavailable", "2")


def test_bodies_at_once_are_limited_by_number(service_settings: ServiceSettings) -> None:
    spooling = Spooling(service_settings)
    with contextlib.ExitStack() as held:
        for _ in range(2):
            held.enter_context(spooling.room(ONE, 1))
        assert refusal(spooling, ONE, 1) == PROJECT_FULL
        held.enter_context(spooling.room(OTHER, 1))
        assert refusal(spooling, OTHER, 1) == refusal(spooling, THIRD, 1) == FULL
    assert refusal(spooling, ONE, 1) is None


def test_bodies_at_once_are_limited_by_bytes(service_settings: ServiceSettings) -> None:
    spooling = Spooling(service_settings)
    with spooling.room(ONE, 16 * MEGABYTE):
        assert refusal(spooling, ONE, 5 * MEGABYTE) == PROJECT_FULL
        assert refusal(spooling, ONE, None) == PROJECT_FULL, "as if it were as long as it may be"
        assert refusal(spooling, ONE, 4 * MEGABYTE) is None
        assert refusal(spooling, OTHER, 15 * MEGABYTE) == FULL
        assert refusal(spooling, OTHER, 14 * MEGABYTE) is None
    assert refusal(spooling, ONE, 100 * MEGABYTE) is None, "one by itself is limited by its route"


def test_some_of_the_disk_stays_free(service_settings: ServiceSettings) -> None:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    spooling = Spooling(service_settings.model_copy(update={"spool_reserve_bytes": free}))
    assert refusal(spooling, ONE, IN_MEMORY_BYTES + 1) == FULL
    assert refusal(spooling, ONE, IN_MEMORY_BYTES) is None, "what never lies on the disk"


@contextlib.contextmanager
def sending(service: Service, key: str, length: int = MEGABYTE) -> Iterator[socket.socket]:
    """An upload of which the beginning was sent."""
    with socket.create_connection(("127.0.0.1", service.settings.port), timeout=10) as connection:
        head = (
            f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n"
            "content-type: multipart/form-data; boundary=x\r\n\r\n"
        )
        connection.sendall(head.encode() + BEGIN)
        yield connection


def answered(connection: socket.socket) -> tuple[int, dict[str, Any], str | None]:
    response = HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())["error"], response.headers["retry-after"]


def sent(service: Service, key: str, size: int = 10) -> httpx2.Response:
    files = {"file": ("f", b"x" * size)}
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.post(f"{service.url}/v1/files", data={"purpose": "user_data"}, files=files, headers=headers)


def taken_in(service: Service) -> int:
    return service.app.state.spooling._bodies.total()


def test_whoever_sends_too_much_at_once_has_to_wait_and_nobody_else(
    service: Service, make_project: Callable[[str], tuple[str, str]]
) -> None:
    greedy, modest = make_project("greedy")[1], make_project("modest")[1]
    with sending(service, greedy), sending(service, greedy):
        wait_until(lambda: taken_in(service) == 2, what="two uploads are under way")
        refused = sent(service, greedy)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_uploads")
        assert refused.headers["retry-after"] == "2"
        assert sent(service, modest).status_code == 200
    wait_until(lambda: taken_in(service) == 0, what="both have been left")
    assert sent(service, greedy).status_code == 200


def test_a_file_that_the_project_has_no_room_for_is_refused_before_it_is_sent(
    service: Service, make_project: Callable[[str], tuple[str, str]]
) -> None:
    key = make_project("full")[1]
    with sending(service, key, 9 * MEGABYTE) as connection:
        status, error, _ = answered(connection)
    assert (status, error["code"]) == (429, "insufficient_quota")
    assert taken_in(service) == 0
    assert sent(service, key, 7 * MEGABYTE).status_code == 200
    assert sent(service, key, 2 * MEGABYTE).json()["error"]["code"] == "insufficient_quota"
