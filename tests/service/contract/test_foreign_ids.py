"""Another tenant's id, wherever a request can name one, is answered like an id that does not exist."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from service.app import public_routes
from service.gateway.routes import PARSERS
from service.openapi.document import document, operations
from tests.service.batches.conftest import over, rows, upload
from tests.service.conftest import Service
from tests.service.contract.conftest import Tenant
from tests.service.contract.matrix import KINDS, MODELS, PROMPTS, UNKNOWN, Place, ask, leaks, places

DOCUMENT = document(public_routes())
NAMING = frozenset(
    {
        "adapter", "adapter_config.json", "adapter_model.safetensors", "after", "checkpoint_id", "compare", "file_id",
        "input_file_id", "job_id", "model", "part_ids", "training_file", "validation_file",
    }
)  # fmt: skip
"""Fields of queries and bodies that name a tenant's thing."""
NAMELESS = frozenset(
    {
        "alias", "bad_words", "base_model", "content", "data", "description", "entity", "event_type", "event_types",
        "file", "filename", "idempotency-key", "if-match", "include", "input", "instructions", "last-event-id", "md5",
        "mime_type", "name", "project", "prompt", "purpose", "reason", "reasoning_effort", "reference", "role",
        "service_tier", "source", "stop", "suffix", "tags", "target_modules", "text", "tool_call_id", "tool_choice",
        "truncation", "url", "user",
    }
)  # fmt: skip
"""Those that do not: words of the caller's own, or names that mean the same for everybody."""


def test_the_matrix_has_every_kind_and_every_path() -> None:
    asked = places()
    assert {place.kind for place in asked} == set(UNKNOWN)
    assert set(KINDS.values()) <= set(UNKNOWN)


def test_the_matrix_has_every_field_that_names_a_thing() -> None:
    asked = {(_operation(place), field) for place in places() for field in _asked(place.options)}
    fields = {
        (operation["operationId"], field)
        for _, _, operation in operations(DOCUMENT)
        if operation["security"] == [{"ProjectKey": []}]
        for field in _fields(operation)
    }
    assert {field for _, field in fields} == NAMING | NAMELESS
    assert {(name, field) for name, field in fields if field in NAMING} - asked == set()


def _operation(place: Place) -> str:
    """Which one a place is of: that with the fewest parameters in its path, as the routes have it."""
    path = "/v1" + re.sub("{.*?}", "x", place.path)
    fitting = [
        (known.count("{"), operation["operationId"])
        for known, method, operation in operations(DOCUMENT)
        if method.upper() == place.method and re.fullmatch(re.sub("{.*?}", "[^/]+", known), path)
    ]
    return min(fitting)[1]


def _asked(given: Any, name: str = "") -> Iterator[str]:
    """The fields in which a place has the asked id."""
    match given:
        case str() if "{id}" in given:
            yield name
        case dict():
            for field, value in given.items():
                yield from _asked(value, field)
        case list() | tuple():
            for value in given:
                yield from _asked(value, name)
        case _:
            return


def _fields(operation: dict[str, Any]) -> Iterator[str]:
    """Names of the query's, the headers' and the body's fields that take any text."""
    parameters = [each for each in operation.get("parameters", ()) if each["in"] != "path"]
    for parameter in parameters:
        yield from _texts(parameter["schema"], parameter["name"])
    for media in operation.get("requestBody", {}).get("content", {}).values():
        yield from _texts(media["schema"])


def _texts(schema: dict[str, Any], name: str = "", inside: tuple[str, ...] = ()) -> Iterator[str]:
    reference = schema.get("$ref", "").rpartition("/")[2]
    if reference and reference not in inside:
        yield from _texts(DOCUMENT["components"]["schemas"][reference], name, (*inside, reference))
    kinds = schema.get("type", [])
    if "string" in ([kinds] if isinstance(kinds, str) else kinds) and not schema.keys() & {"enum", "const"}:
        yield name
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *filter(None, [schema.get("items")])):
        yield from _texts(part, name, inside)
    for field, part in schema.get("properties", {}).items():
        yield from _texts(part, field, inside)


@pytest.mark.parametrize("place", places(), ids=str)
def test_a_foreign_id_is_answered_like_an_unknown_one(
    service: Service, tenants: tuple[Tenant, Tenant], place: Place
) -> None:
    assert leaks(service.url, *tenants, place) is None


def test_the_owner_still_has_everything(service: Service, tenants: tuple[Tenant, Tenant]) -> None:
    owner = tenants[1]
    for path, kind in (
        ("/files/{id}", "file"),
        ("/fine_tuning/jobs/{id}", "job"),
        ("/models/{id}", "model"),
        ("/models/{id}", "checkpoint model"),
        ("/webhook_endpoints/{id}", "endpoint"),
    ):
        assert ask(service.url, owner, Place("GET", path, kind), owner.ids[kind])[0] == 200


@pytest.mark.parametrize("endpoint", PARSERS)
def test_a_line_of_a_batch_that_names_a_foreign_model_fails_like_an_unknown_one(
    service: Service, tenants: tuple[Tenant, Tenant], monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setattr("service.batches.executor.POLL_SECONDS", 0.05)
    monkeypatch.setattr("service.batches.asking.RECORD_SECONDS", 0.1)
    caller, owner = tenants
    names = [template.replace("{id}", ids[kind]) for kind, template in MODELS for ids in (owner.ids, UNKNOWN)]
    prompt = PROMPTS[endpoint.removeprefix("/v1")]
    lines: list[dict[str, Any]] = [
        {"custom_id": f"r{number}", "method": "POST", "url": endpoint, "body": {"model": name, **prompt}}
        for number, name in enumerate(names)
    ]
    sdk = service.client(caller.key)
    file = upload(sdk, lines)
    made = sdk.batches.create(input_file_id=file, endpoint=endpoint, completion_window="24h")  # type: ignore[arg-type]
    batch = over(sdk, made.id)
    assert (batch.status, batch.output_file_id) == ("completed", None)
    told = {name: told["response"] for name, told in rows(sdk, batch.error_file_id).items()}
    assert {each["status_code"] for each in told.values()} == {404}
    said = {json.dumps(told[f"r{number}"]["body"]).replace(name, "NAME") for number, name in enumerate(names)}
    assert len(said) == 1
