"""What every route has in common: the envelope, the request id, the limits on bodies, health."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from http.client import HTTPMessage, HTTPResponse
from typing import Any

import httpx2
import openai
import pytest

from tests.service.conftest import Service


@pytest.fixture(scope="module")
def raw(service: Service) -> Any:
    with httpx2.Client(base_url=service.url, timeout=30) as client:
        yield client


def envelope(response: httpx2.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert {"message", "type", "param", "code"} <= set(body["error"])
    return body["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "unknown_url"),
        ("GET", "/v1/files/", 404, "unknown_url"),
        ("PATCH", "/v1/files", 405, "method_not_allowed"),
        ("GET", "/v1/files", 401, "invalid_api_key"),
        ("GET", "/v1/organization/projects", 401, "invalid_api_key"),
        ("POST", "/internal/leases", 401, "invalid_api_key"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
    ],
)
def test_an_error_is_openais_envelope(raw: httpx2.Client, method: str, path: str, status: int, code: str) -> None:
    response = raw.request(method, path)
    assert response.status_code == status
    assert envelope(response)["code"] == code
    assert response.headers["x-request-id"].startswith("req_")


def test_405_says_what_is_allowed(raw: httpx2.Client) -> None:
    assert raw.put("/healthz").headers["allow"] == "GET"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b'{"name":5}', "name", "valid string"),
        (b"{}", "name", "Field required"),
        (b'{"name":"a","more":1}', "more", "Unrecognized request argument"),
        (b"[]", None, "JSON object"),
        (b"", None, "JSON object"),
        (b"{", None, "could not parse the JSON body"),
        (b'{"name":"\\ud800"}', "name", "unicode"),
        (b"[" * 100_000, None, "could not parse the body"),
    ],
)
def test_a_bad_body_is_a_400_that_names_the_field(
    admin: httpx2.Client, body: bytes, param: str | None, words: str
) -> None:
    response = admin.post("/organization/projects", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    error = envelope(response)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]


def test_a_body_that_is_no_json_is_a_415(admin: httpx2.Client) -> None:
    response = admin.post("/organization/projects", content=b'{"name":"a"}', headers={"content-type": "text/plain"})
    assert response.status_code == 415
    assert "application/json" in envelope(response)["message"]


def test_a_compressed_body_is_a_415(admin: httpx2.Client) -> None:
    response = admin.post("/organization/projects", content=b"x", headers={"content-encoding": "gzip"})
    assert response.status_code == 415
    assert envelope(response)["code"] == "unsupported_media_type"


def test_nul_in_a_path_or_query_is_a_400(admin: httpx2.Client) -> None:
    assert admin.get("/organization/projects/a%00b").status_code == 400
    assert admin.get("/organization/projects", params={"name": "a\0"}).status_code == 400


def test_a_declared_body_over_the_limit_is_a_413(service: Service, admin: httpx2.Client) -> None:
    response = admin.post("/organization/projects", content=b" " * (service.settings.max_body_bytes + 1))
    assert response.status_code == 413
    assert envelope(response)["code"] == "payload_too_large"


@pytest.mark.parametrize("path", ["/organization/projects", "/chat/completions"])
def test_an_undeclared_body_over_the_limit_is_a_413(
    service: Service, admin: httpx2.Client, make_project: Callable[[str], tuple[str, str]], path: str
) -> None:
    key = make_project(f"large{path.replace('/', '-')}")[1] if "chat" in path else None
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    limit = service.settings.max_prompt_bytes if "chat" in path else service.settings.max_body_bytes
    pieces = (b" " * 65536 for _ in range(limit // 65536 + 2))
    response = admin.post(path, content=pieces, headers=headers)
    assert response.status_code == 413
    assert envelope(response)["code"] == "payload_too_large"


def test_a_request_over_the_limit_has_no_effect(service: Service, admin: httpx2.Client) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"name":"overlarge"}'
        for _ in range(service.settings.max_body_bytes // 65536 + 1):
            yield b" " * 65536

    headers = {"content-type": "application/json"}
    assert admin.post("/organization/projects", content=pieces(), headers=headers).status_code == 413
    assert admin.get("/organization/projects", params={"name": "overlarge"}).json()["data"] == []


def test_a_clients_request_id_is_kept_when_it_is_harmless(raw: httpx2.Client) -> None:
    assert raw.get("/healthz", headers={"x-request-id": "mine_1-2"}).headers["x-request-id"] == "mine_1-2"
    for hostile in ("a b", "x" * 65, "é", "a;b", ""):
        made = raw.get("/healthz", headers={b"x-request-id": hostile.encode()}).headers["x-request-id"]
        assert re.fullmatch(r"req_[0-9a-f]{32}", made)


def test_openais_headers_are_there(raw: httpx2.Client) -> None:
    response = raw.get("/healthz")
    assert response.headers["openai-processing-ms"].isdigit()
    assert response.headers["openai-version"] == "2020-10-01"
    assert "server" not in response.headers or response.headers["server"] == "uvicorn"


def test_the_sdk_shows_the_request_id(client: Callable[[str], openai.OpenAI]) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client("sk-weft-wrong").files.list()
    assert caught.value.request_id
    assert caught.value.request_id.startswith("req_")
    assert caught.value.code == "invalid_api_key"


def test_an_unexpected_failure_is_a_500_without_its_cause(service: Service, raw: httpx2.Client) -> None:
    async def broken() -> None:
        raise RuntimeError("the secret cause")

    service.app.add_api_route("/broken", broken)
    response = raw.get("/broken", headers={"x-request-id": "of-the-500"})
    assert response.status_code == 500
    assert envelope(response)["type"] == "server_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] == "of-the-500"


def test_health_and_readiness(raw: httpx2.Client) -> None:
    assert raw.get("/healthz").json() == {"status": "ok"}
    response = raw.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"status": "not ready", "database": True, "store": True, "replica": False}


def test_what_is_no_http_has_an_envelope_too_and_does_not_disturb_the_next_request(
    service: Service, raw: httpx2.Client
) -> None:
    status, headers, body = spoken(service, b"\x16\x03\x01\x02\x00\x01\r\n\r\n")
    assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_request")
    assert headers["x-request-id"]
    assert raw.get("/healthz").status_code == 200


def test_a_websocket_is_answered_as_the_request_that_it_begins_with(service: Service) -> None:
    offer = b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: MTIzNA==\r\n"
    status, headers, body = spoken(service, b"GET /v1/files HTTP/1.1\r\nhost: x\r\n" + offer + b"\r\n")
    assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")
    assert headers["x-request-id"]


def spoken(service: Service, sent: bytes) -> tuple[int, HTTPMessage, bytes]:
    with socket.create_connection(("127.0.0.1", service.settings.port), timeout=5) as connection:
        connection.sendall(sent)
        response = HTTPResponse(connection)
        response.begin()
        return response.status, response.headers, response.read()


def test_every_documented_route_has_the_shape_openapi_says(raw: httpx2.Client) -> None:
    paths = raw.get("/openapi.json").json()["paths"]
    assert {"/v1/files", "/v1/files/{file_id}/content", "/v1/organization/projects"} <= set(paths)
