"""The OpenAPI document says what the service does: every route, no other, with errors, keys and examples that hold."""

import asyncio
import json
import re
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator
from starlette.routing import Route

from service.app import public_routes
from service.gateway import fields
from service.openapi.document import ERROR, document, examples, operations
from service.openapi.inference import FIELDS
from tests.service.conftest import Service

STORED = Path(__file__).parents[3] / "docs/openapi.json"
DOCUMENT = document(public_routes())
OPERATIONS = list(operations(DOCUMENT))
DOCS = re.compile(r"/docs(/.*)?|/openapi\.json")
HTTP = httpx2.Client(timeout=20)
ids = [operation["operationId"] for _, _, operation in OPERATIONS]


def test_the_stored_document_is_current() -> None:
    assert json.loads(STORED.read_text()) == DOCUMENT, "run `make openapi`"


def test_the_service_shows_the_same_document(service: Service) -> None:
    assert HTTP.get(f"{service.url}/openapi.json").json() == DOCUMENT


def test_every_public_route_is_described_and_nothing_else(service: Service) -> None:
    served = {
        (re.sub(r":\w+}", "}", route.path), method)
        for route in _routes(service)
        for method in (route.methods or set()) - {"HEAD"}
    }
    public = {(path, method) for path, method in served if not DOCS.fullmatch(path)}
    described = {(path, method.upper()) for path, method, _ in OPERATIONS}
    assert {path for path, _ in public - described if not path.startswith("/internal/")} == set()
    assert described <= public
    assert not [path for path, _ in described if path.startswith("/internal")]


def test_every_field_of_a_prompt_is_described() -> None:
    known = fields.CHAT | fields.COMPLETION | fields.RESPONSE | fields.EMBEDDING
    assert set(FIELDS) == known


def test_what_holds_for_all_requests_is_said_at_the_beginning() -> None:
    said = DOCUMENT["info"]["description"]
    for word in ("x-request-id", "Idempotency-Key", "408", "413", "415", "422", "431", "64 KiB", "0.5 MiB", "512 MiB"):
        assert word in said
    for _, method, operation in OPERATIONS:
        named = [parameter["name"] for parameter in operation.get("parameters", ())]
        assert ("idempotency-key" in named) == (method == "post")


def test_operations_are_named_once() -> None:
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=ids)
def test_an_operation_is_explained(path: str, method: str, operation: dict[str, Any]) -> None:
    assert operation["description"]
    assert set(operation["tags"]) <= {tag["name"] for tag in DOCUMENT["tags"]}
    assert {"400", "500"} <= set(operation["responses"])
    assert ("401" in operation["responses"]) == bool(operation["security"])
    for answer in operation["responses"].values():
        assert "$ref" in answer or "x-request-id" in answer["headers"]


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=ids)
def test_a_key_is_asked_for_where_the_document_says_so(
    service: Service, path: str, method: str, operation: dict[str, Any]
) -> None:
    answer = HTTP.request(method.upper(), service.url + re.sub("{.*?}", "x", path))
    assert (answer.status_code == 401) == bool(operation["security"])
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_a_method_that_a_path_does_not_take_is_a_405(service: Service, path: str) -> None:
    answer = HTTP.request("TRACE", service.url + re.sub("{.*?}", "x", path))
    _check_error(answer, 405, "method_not_allowed")
    assert set(DOCUMENT["paths"][path]) <= {method.strip().lower() for method in answer.headers["allow"].split(",")}


@pytest.mark.parametrize("path", [path for path, _, operation in OPERATIONS if "requestBody" in operation])
def test_bodies_that_are_not_taken_are_a_413_and_a_415(service: Service, path: str) -> None:
    url = service.url + re.sub("{.*?}", "x", path)
    packed = httpx2.post(url, content=b"x", headers={"content-encoding": "gzip"})
    _check_error(packed, 415, "unsupported_media_type")
    connection = HTTPConnection("127.0.0.1", service.settings.port, timeout=20)
    connection.request("POST", httpx2.URL(url).path, headers={"content-length": str(1 << 40)})
    told = connection.getresponse()
    too_large = httpx2.Response(told.status, headers=dict(told.getheaders()), content=told.read())
    connection.close()
    _check_error(too_large, 413, "payload_too_large")


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=ids)
def test_the_examples_fit_their_schemas(path: str, method: str, operation: dict[str, Any]) -> None:
    held = [operation.get("requestBody", {}), operation["responses"].get("200", {})]
    shown = [media for part in held for media in part.get("content", {}).items() if _needs_example(*media)]
    for kind, media in shown:
        assert "example" in media, f"{operation['operationId']} has no example of its {kind}"
        schema = {"components": DOCUMENT["components"], **media["schema"]}
        Draft202012Validator(schema).validate(media["example"])


def test_there_are_no_examples_of_anything_else() -> None:
    assert set(examples()) <= set(ids)


def test_the_page_for_people_loads_nothing_from_elsewhere(service: Service) -> None:
    page = HTTP.get(f"{service.url}/docs")
    assert page.status_code == 200
    loaded = re.findall(r'(?:src|href|url)["\']?[=:]\s*["\']([^"\']+)', page.text)
    assert "/openapi.json" in loaded
    for address in loaded:
        assert address.startswith("/")
        assert HTTP.get(service.url + address).status_code == 200
    assert '"validatorUrl": null' in page.text


def _check_error(answer: httpx2.Response, status: int, code: str) -> None:
    assert answer.status_code == status
    Draft202012Validator(ERROR).validate(answer.json())
    assert answer.json()["error"]["code"] == code
    assert answer.headers["x-request-id"]


def _needs_example(kind: str, media: dict[str, Any]) -> bool:
    return kind == "application/json" and media["schema"] != {}


def _routes(service: Service) -> list[Route]:
    async def found() -> list[Route]:
        await asyncio.sleep(0)
        return [route for route in service.app.router.routes if isinstance(route, Route)]

    return service.call(found())
