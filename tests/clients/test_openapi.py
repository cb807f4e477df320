"""The SDK has what docs/openapi.json has: every route, every parameter, every field of what is sent and answered."""

import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import httpx2
import pytest
from openai import BaseModel
from openai.pagination import SyncCursorPage

from tests.clients.methods import GIVEN, LEFT_OUT, NOT_CALLED, OURS, STOCK
from weft import AsyncWeft, Weft
from weft.options import EXTRAS
from weft.resources.usage import SyncReport
from weft.types import adapters, aliases, evaluations, jobs

DOCUMENT = json.loads((Path(__file__).parents[2] / "docs/openapi.json").read_text())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
OPERATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
PARAMETERS = {
    "AddVersion.source": (adapters.SourceParam, ("JobSource", "CheckpointSource", "ModelSource")),
    "SetAlias.traffic": (aliases.ShareParam, ("Weighted",)),
    "SetAlias.shadow": (aliases.ShadowParam, ("Shadowed",)),
    "SetAlias.automatic_rollback": (aliases.AutomaticRollbackParam, ("AutomaticRollback",)),
    "CreateJob.on_success": (jobs.OnSuccess, ("OnSuccess",)),
    "OnSuccess.evaluation": (jobs.PromotionEvaluation, ("HeldOut",)),
    "CreateJob.method": (jobs.Method, ("RequestedMethod",)),
    "MethodSettings.hyperparameters": (jobs.Hyperparameters, ("RequestedHyperparameters",)),
    "RequestedHyperparameters.early_stopping": (jobs.EarlyStopping, ("EarlyStopping",)),
    "Grader: loss": (evaluations.LossParam, ("Loss",)),
    "Grader: exact_match": (evaluations.ExactMatchParam, ("ExactMatch",)),
}
"""What is given as a mapping, and the schemas of which it has the fields."""
OPEN = {"grader"}
"""Fields of answers that are mappings, as they were given."""
REFUSED = {"RequestedMethod": {"reinforcement"}}
"""Fields that the service knows only to refuse them."""


def test_every_operation_has_its_method() -> None:
    assert set(OURS) | set(STOCK) | set(NOT_CALLED) == set(OPERATIONS)


@pytest.mark.parametrize("kind", [Weft, AsyncWeft])
def test_both_clients_have_every_method(kind: Any) -> None:
    client = kind(api_key="none")
    assert all(callable(resolved(client, method)) for method in (*OURS.values(), *STOCK.values()))


@pytest.mark.parametrize("kind", [Weft, AsyncWeft])
@pytest.mark.parametrize("variant", ["with_raw_response", "with_streaming_response"])
def test_every_request_has_its_raw_and_its_streamed_response(kind: Any, variant: str) -> None:
    client = kind(api_key="none")
    for method in (*OURS.values(), "adapters.promote", "adapters.split", "adapters.guard"):
        resource, _, name = method.rpartition(".")
        assert callable(getattr(getattr(resolved(client, resource), variant), name))


class Answering:
    """A service that gives one answer and keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.asked: list[httpx2.Request] = []
        http = httpx2.Client(transport=httpx2.MockTransport(self))
        self.client = Weft(api_key="none", admin_api_key="none", http_client=http)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        return httpx2.Response(200, json=self.answer)


@pytest.fixture(scope="module")
def answering() -> Answering:
    return Answering()


@pytest.mark.parametrize("operation", OURS)
@pytest.mark.parametrize("alternative", [0, 1])
def test_an_operation_takes_and_gives_what_the_document_says(
    operation: str, alternative: int, answering: Answering
) -> None:
    verb, path, described = OPERATIONS[operation]
    answering.answer = answer = example(answer_of(described), alternative)
    answering.asked = []
    method = resolved(answering.client, OURS[operation])
    found = method(**{**arguments(method), **GIVEN.get(operation, {})})
    (request,) = answering.asked
    assert (request.method, bool(re.fullmatch(re.sub(r"{\w+}", "[^/]+", path), request.url.path))) == (verb, True)
    assert sent(request) == wanted(described) - set(LEFT_OUT.get(operation, {}))
    if not isinstance(found, tuple):
        assert list(unknown(found, answer)) == []


@pytest.mark.parametrize("where", PARAMETERS)
def test_a_mapping_has_the_fields_of_its_schema(where: str) -> None:
    mapping, names = PARAMETERS[where]
    fields = {field for name in names for field in SCHEMAS[name]["properties"]}
    assert set(get_type_hints(mapping)) == fields - {field for name in names for field in REFUSED.get(name, ())}


def test_both_clients_take_the_same() -> None:
    one, other = (dict(methods(kind(api_key="none"))) for kind in (Weft, AsyncWeft))
    assert {method: list(parameters(found)) for method, found in one.items()} == {
        method: list(parameters(found)) for method, found in other.items()
    }
    assert {*OURS.values(), "adapters.push", "fine_tuning.jobs.wait"} <= set(one)


def methods(resource: Any, where: str = "") -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public method of Weft's own, by where it is found."""
    own = {name for kind in type(resource).__mro__ if kind.__module__.startswith("weft.") for name in vars(kind)}
    for name in sorted(own):
        if name.startswith(("_", "with_")):
            continue
        found = getattr(resource, name)
        if inspect.ismethod(found):
            yield where + name, found
        elif type(found).__module__.startswith("weft.resources"):
            yield from methods(found, f"{where}{name}.")


def parameters(method: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    for parameter in inspect.signature(method).parameters.values():
        yield parameter.name, parameter.default


def resolved(client: object, method: str) -> Callable[..., Any]:
    found: Any = client
    for name in method.split("."):
        found = getattr(found, name)
    return found


def arguments(method: Callable[..., Any]) -> dict[str, Any]:
    """Everything that the method takes; of most the value does not matter, so it is the name."""
    given: dict[str, Any] = {}
    for parameter in inspect.signature(method).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            (fields,) = get_args(parameter.annotation)
            named = {name: str(kind) for name, kind in get_type_hints(fields).items() if name not in EXTRAS}
        else:
            named = {} if parameter.name in EXTRAS else {parameter.name: str(parameter.annotation)}
        given |= {name: [name] if "Sequence" in kind else name for name, kind in named.items()}
    return given


def sent(request: httpx2.Request) -> set[str]:
    """Names of everything that was sent beside the path."""
    body = json.loads(request.content) if request.content else {}
    headers = {name for name in ("if-match", "last-event-id") if name in request.headers}
    return set(body) | set(request.url.params) | headers


def wanted(operation: dict[str, Any]) -> set[str]:
    """Names of everything that the operation takes beside the path and the idempotency that every client has."""
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    parameters = {each["name"] for each in operation.get("parameters", []) if each["in"] != "path"}
    return (parameters - {"idempotency-key"}) | set(followed(body, 0).get("properties", {}))


def answer_of(operation: dict[str, Any]) -> dict[str, Any]:
    """The first kind of answer: the second one of `create_job` is what an estimate gives."""
    return followed(operation["responses"]["200"]["content"]["application/json"]["schema"], 0)


def followed(schema: dict[str, Any], alternative: int) -> dict[str, Any]:
    """The schema itself, of a reference or of one of several that are possible; never that of null."""
    if "$ref" in schema:
        return followed(SCHEMAS[schema["$ref"].rsplit("/", 1)[1]], alternative)
    possible = [each for each in schema.get("anyOf", schema.get("oneOf", [])) if each.get("type") != "null"]
    if possible:
        return followed(possible[min(alternative, len(possible) - 1)], alternative)
    return schema


def example(schema: dict[str, Any], alternative: int) -> Any:
    """A value with every field that the schema has."""
    schema = followed(schema, alternative)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if "properties" in schema:
        return {name: example(field, alternative) for name, field in schema["properties"].items()}
    if schema.get("type") == "array":
        return [example(schema["items"], alternative)]
    if schema.get("type") == "object":
        return {"any": example(schema["additionalProperties"], alternative)} if free(schema) else {}
    return {"string": "text", "integer": 7, "number": 0.5, "boolean": True}[schema["type"]]


def free(schema: dict[str, Any]) -> bool:
    return isinstance(schema.get("additionalProperties"), dict)


def unknown(found: Any, answer: Any, where: str = "") -> Iterator[str]:
    """Fields of the answer that the SDK's types do not have."""
    if isinstance(found, SyncCursorPage | SyncReport):
        yield from unknown(found.data[0], answer["data"][0], f"{where}.data")
    elif isinstance(found, BaseModel):
        fields = {field.alias or name: name for name, field in type(found).model_fields.items()}
        for name, value in answer.items():
            if name not in fields:
                yield f"{where}.{name}"
            elif name not in OPEN:
                yield from unknown(getattr(found, fields[name]), value, f"{where}.{name}")
    elif isinstance(found, list):
        yield from unknown(found[0], answer[0], f"{where}[]")
    elif isinstance(found, dict) and answer.keys() - {"any"}:
        yield f"{where} is a plain mapping"
