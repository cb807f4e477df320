"""The public API as one OpenAPI document, made of the routes themselves. Routes under /internal are no part of it.

What types do not tell is added here: errors, keys, headers, examples, and the gateway's plain ASGI routes.
"""

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Final

from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from service import errors
from service.connections import HEAD_BYTES, HEAD_FIELDS
from service.idempotency.route import KEY_HEADER
from service.monitoring import require_reader
from service.openapi import inference
from service.settings import ServiceSettings
from service.tenants.auth import current_tenant, require_admin

Document = dict[str, Any]

VERSION: Final = "1"
INTERNAL: Final = "/internal/"


def _mebibytes(setting: str) -> str:
    """The setting's default, for people."""
    return f"{ServiceSettings.model_fields[setting].default / (1 << 20):g} MiB"


DESCRIPTION: Final = f"""Fine-tuning and inference that an organisation runs itself, by OpenAI's contract.

Every answer has an `x-request-id`. Every error has OpenAI's envelope, `{{"error": {{message, type, param, code}}}}`.
An id of another project is answered like one that does not exist.

A request's headers may be {HEAD_FIELDS} and have {HEAD_BYTES >> 10} KiB together; more are a 431. A request that does
not arrive in time is a 408. Unless the installation has other limits, a body may have {_mebibytes("max_body_bytes")},
a prompt {_mebibytes("max_prompt_bytes")}, a file {_mebibytes("max_file_bytes")} and a part of an upload
{_mebibytes("max_part_bytes")}, no body without a `Content-Length` more than
{_mebibytes("max_unannounced_bytes")}; larger ones are a 413, and compressed ones a 415.

A POST with an `Idempotency-Key` happens once in 24 hours: repeats get the first answer, with `idempotent-replayed:
true`, or 409 `idempotency_in_flight` while there is none yet. Of a prompt it holds for 10 minutes after the answer. An
answer that was streamed, or is longer than 1 MiB, is not given again: repeats get 409 `idempotency_answer_not_kept`.
Under a key that was used for another request the answer is 422 `idempotency_key_reused`. What failed, and a stream that
its client left, may be asked again under the same key.
"""
TAGS: Final = {
    "inference": "Answers of base models and fine-tuned models.",
    "files": "Training data and other files.",
    "uploads": "Large files in parts.",
    "fine-tuning": "Training jobs, and who else may use their models. Permissions need an administrator's key.",
    "batches": "Many requests in one file.",
    "models": "Base models and the project's fine-tuned models.",
    "adapters": "Fine-tuned models under names of the project's own, with versions and aliases.",
    "webhooks": "Endpoints that are told when jobs end.",
    "organization": "Projects, keys, limits, usage, costs and the audit log. Needs an administrator's key.",
    "health": "For whoever runs the service. All but the metrics are open to everyone.",
}
SECURITY: Final = {
    "ProjectKey": {"type": "http", "scheme": "bearer", "description": "A key of a project: `sk-weft-…`."},
    "AdminKey": {"type": "http", "scheme": "bearer", "description": "The administrator's key, or one made with it."},
}
ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field or parameter at fault."},
                "code": {"type": ["string", "null"], "description": "What went wrong, for programs."},
            },
        }
    },
}
REQUEST_ID: Final = {"description": "Names this request in logs.", "schema": {"type": "string"}, "required": True}
IDEMPOTENCY_KEY: Final = {
    "name": KEY_HEADER,
    "in": "header",
    "required": False,
    "description": "Repeats under the same key get the first answer.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]*$"},
}
Kinds = tuple[type[errors.ApiError], ...]

EVERYWHERE: Final[Kinds] = (errors.InvalidRequest, errors.Unavailable)
WITH_KEY: Final[Kinds] = (errors.Unauthenticated, errors.Forbidden, errors.RateLimited)
WITH_BODY: Final[Kinds] = (errors.RequestTimeout, errors.PayloadTooLarge, errors.UnsupportedMedia)
CHANGING: Final[Kinds] = (errors.NotFound, errors.Conflict, errors.Unprocessable)
NAMING: Final[Kinds] = (errors.NotFound,)
UNEXPECTED: Final = "500"


def document(routes: Sequence[BaseRoute]) -> Document:
    """The document of these routes and of the gateway's."""
    public = [route for route in routes if isinstance(route, APIRoute) and not route.path.startswith(INTERNAL)]
    made: Document = get_openapi(
        title="Weft",
        version=VERSION,
        description=DESCRIPTION,
        routes=public,
        tags=[{"name": name, "description": said} for name, said in TAGS.items()],
    )
    _name_operations(made, public)
    for path, operation in inference.PATHS.items():
        made["paths"][path] = {"post": {**deepcopy(operation), "security": [{"ProjectKey": []}]}}
    for path, method, operation in operations(made):
        if method == "post":
            operation.setdefault("parameters", []).append(IDEMPOTENCY_KEY)
        _add_errors(path, method, operation)
        _add_example(operation)
    components = made["components"]
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    components["schemas"] |= inference.SCHEMAS | {"Error": ERROR}
    components["securitySchemes"] = SECURITY
    components["responses"] = {kind.__name__: _response(kind) for kind in _kinds()} | {"Unexpected": _unexpected()}
    components["headers"] = {"x-request-id": REQUEST_ID}
    return made


def operations(made: Document) -> Iterator[tuple[str, str, Document]]:
    """Path, method and operation of each."""
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


@cache
def examples() -> dict[str, dict[str, Any]]:
    """For each operation what may be sent, where there is a body, and what comes back."""
    return json.loads(Path(__file__).with_name("examples.json").read_text())


def _name_operations(made: Document, routes: list[APIRoute]) -> None:
    taken: set[str] = set()
    for route in routes:
        for method in sorted(route.methods):
            operation: Document = made["paths"][route.path_format][method.lower()]
            name = route.name if route.name not in taken else f"{route.name}_by_{method.lower()}"
            taken.add(name)
            operation["operationId"] = name
            operation["security"] = _security(route)


def _security(route: APIRoute) -> list[dict[str, list[str]]]:
    calls = set(_calls(route.dependant))
    if calls & {require_admin, require_reader}:
        return [{"AdminKey": []}]
    return [{"ProjectKey": []}] if current_tenant in calls else []


def _calls(dependant: Dependant) -> Iterator[Any]:
    yield dependant.call
    for needed in dependant.dependencies:
        yield from _calls(needed)


def _add_errors(path: str, method: str, operation: Document) -> None:
    answers = operation["responses"]
    answers.pop("422", None)
    kinds: list[type[errors.ApiError]] = [*EVERYWHERE]
    kinds += WITH_KEY if operation["security"] else ()
    kinds += WITH_BODY if "requestBody" in operation else ()
    kinds += CHANGING if method != "get" else NAMING if "{" in path else ()
    for kind in kinds:
        answers.setdefault(str(kind.status), {"$ref": f"#/components/responses/{kind.__name__}"})
    answers[UNEXPECTED] = {"$ref": "#/components/responses/Unexpected"}
    for answer in answers.values():
        if "$ref" not in answer:
            answer["headers"] = {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}


def _add_example(operation: Document) -> None:
    example = examples().get(operation["operationId"], {})
    for part, held in (
        ("request", operation.get("requestBody", {})),
        ("response", operation["responses"].get("200", {})),
    ):
        for media in held.get("content", {}):
            if part in example and media in ("application/json", "multipart/form-data"):
                held["content"][media]["example"] = deepcopy(example[part])


def _kinds() -> dict[type[errors.ApiError], None]:
    """Each once, in the same order at every start: the document is a file under version control."""
    return dict.fromkeys((*EVERYWHERE, *WITH_KEY, *WITH_BODY, *CHANGING))


def _response(kind: type[errors.ApiError]) -> Document:
    return _envelope(kind().body(), kind().message)


def _unexpected() -> Document:
    failed = errors.ApiError("The server had an error. Try again.", code="server_error")
    return _envelope(failed.body(), failed.message)


def _envelope(example: Document, said: str) -> Document:
    media = {"schema": {"$ref": "#/components/schemas/Error"}, "example": example}
    headers = {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}
    return {"description": said, "content": {"application/json": media}, "headers": headers}
