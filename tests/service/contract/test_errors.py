"""Whatever is wrong with a request, and whichever route it goes to: the stock clients raise classes of their own, with
a code and the request's id.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route

from service.app import public_routes
from service.files.forms import FORM_BYTES
from service.gateway.routes import EMBEDDINGS, PARSERS
from service.openapi.document import document, operations
from service.settings import ServiceSettings
from tests.service.conftest import Service

LIMIT = 8 << 10
ADMIN = {
    (path, method.upper())
    for path, method, operation in operations(document(public_routes()))
    if operation["security"] == [{"AdminKey": []}]
}
FORM = "/v1/files"
LOOKS_FIRST = "/v1/adapters/{adapter}/versions/{version}/exports"
"""It looks for what is named before it says anything of the body, as it does of a part of an upload."""
OPEN = re.compile(r"/healthz|/readyz|/openapi\.json|/docs(/.*)?")
"""What needs no key."""


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    names = ("max_body_bytes", "max_prompt_bytes", "max_file_bytes", "max_part_bytes")
    return service_settings.model_copy(update=dict.fromkeys(names, LIMIT))


@dataclass(frozen=True)
class Asked:
    """One method of one route, and a key that may ask it."""

    method: str
    template: str
    path: str
    key: str
    reads_json: bool
    has_limit: bool
    untaken: str
    """A method that the path does not take."""

    @property
    def changes(self) -> bool:
        return self.method in ("POST", "PUT", "PATCH")

    @property
    def reads_form(self) -> bool:
        return self.method == "POST" and self.template == FORM

    def send(self, client: Any, path: str = "", method: str = "", content: bytes | None = None, **headers: Any) -> Any:
        ask = getattr(client, (method or self.method).lower())
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {} if content is None else {"content": content}
        options = {"headers": {"authorization": f"Bearer {self.key}", "content-type": "application/json"} | named}
        return ask(self.path + path, cast_to=object, options=options, **sent)


@dataclass(frozen=True)
class Failure:
    """A way to ask in vain, for those routes that it `concerns`."""

    kind: type[openai.APIStatusError]
    status: int
    codes: set[str]
    ask: Callable[[Any, Asked], Any]
    concerns: Callable[[Asked], bool] = lambda asked: True


FAILURES = {
    "no key": Failure(
        openai.AuthenticationError,
        401,
        {"invalid_api_key"},
        lambda client, asked: asked.send(client, authorization=openai.Omit()),
        lambda asked: not OPEN.fullmatch(asked.template),
    ),
    "an address below": Failure(
        openai.NotFoundError,
        404,
        # Below some a name with slashes is a name.
        {"unknown_url", "not_found", "model_not_found", "export_not_found"},
        lambda client, asked: asked.send(client, path="/a/b/c/d", method="GET"),
    ),
    "another method": Failure(
        openai.APIStatusError,
        405,
        {"method_not_allowed"},
        lambda client, asked: asked.send(client, method=asked.untaken),
    ),
    "too large a body": Failure(
        openai.APIStatusError,
        413,
        {"payload_too_large"},
        lambda client, asked: asked.send(client, content=b" " * (LIMIT + FORM_BYTES + 1)),
        lambda asked: asked.changes,
    ),
    "a compressed body": Failure(
        openai.APIStatusError,
        415,
        {"unsupported_media_type"},
        lambda client, asked: asked.send(client, content=b"x", content_encoding="gzip"),
        lambda asked: asked.changes,
    ),
    "a body of another type": Failure(
        openai.APIStatusError,
        415,
        {"unsupported_media_type"},
        lambda client, asked: asked.send(client, content=b"a", content_type="text/plain"),
        lambda asked: asked.reads_json or asked.reads_form,
    ),
    "a body that is no object": Failure(
        openai.BadRequestError,
        400,
        {"invalid_request"},
        lambda client, asked: asked.send(client, content=b"[]"),
        lambda asked: asked.reads_json,
    ),
    "a query that is no number": Failure(
        openai.BadRequestError,
        400,
        {"invalid_request"},
        lambda client, asked: asked.send(client, path="?limit=x"),
        lambda asked: asked.has_limit,
    ),
}


@pytest.fixture(scope="module")
def every(service: Service, make_project: Callable[[str], tuple[str, str]]) -> list[Asked]:
    """What the application itself has for routes, those for workers and replicas included."""
    (project, tenant), settings = make_project("errs"), service.settings
    found = [route for route in service.app.router.routes if isinstance(route, Route)]
    assert len(found) == len(service.app.router.routes)

    def key(path: str, method: str) -> str:
        if path.startswith(("/internal/replicas", "/internal/adapters")):
            return settings.replica_token.get_secret_value()
        if path.startswith("/internal/"):
            return settings.worker_token.get_secret_value()
        return settings.admin_key.get_secret_value() if (path, method) in ADMIN else tenant

    put = {route.path for route in found if "PUT" in (route.methods or ())}

    def asked(route: Route, method: str) -> Asked:
        path = re.sub(r":\w+}", "}", route.path)
        described = route.dependant if isinstance(route, APIRoute) else None
        reads = path in (*PARSERS, EMBEDDINGS) or bool(described and described.body_params and path != LOOKS_FIRST)
        limit = described is not None and any(each.name == "limit" for each in described.query_params)
        filled = re.sub("{.*?}", "x", path.replace("{project_id}", project).replace("{version}", "v1"))
        return Asked(method, path, filled, key(path, method), reads, limit, "PATCH" if route.path in put else "PUT")

    return [asked(route, method) for route in found for method in sorted((route.methods or set()) - {"HEAD"})]


def test_the_failures_concern_every_route(every: list[Asked]) -> None:
    assert len(every) > 100
    for name, failure in FAILURES.items():
        assert sum(map(failure.concerns, every)) > 10, name


@pytest.fixture(scope="module")
def options(service: Service) -> dict[str, Any]:
    return {"base_url": service.url, "api_key": "none", "max_retries": 0, "timeout": 60}


@pytest.mark.parametrize("name", FAILURES)
def test_every_route_fails_in_the_packages_own_classes(options: dict[str, Any], every: list[Asked], name: str) -> None:
    failure = FAILURES[name]
    wrong: list[str] = []
    with openai.OpenAI(**options) as client:
        for each in filter(failure.concerns, every):
            try:
                answer = failure.ask(client, each)
            except openai.APIStatusError as error:
                answer = error
            wrong += _unlike(failure, each, answer)
    assert wrong == []


@pytest.mark.parametrize("name", FAILURES)
async def test_every_route_fails_so_async(options: dict[str, Any], every: list[Asked], name: str) -> None:
    failure = FAILURES[name]
    wrong: list[str] = []
    async with openai.AsyncOpenAI(**options) as client:
        for each in filter(failure.concerns, every):
            try:
                answer = await failure.ask(client, each)
            except openai.APIStatusError as error:
                answer = error
            wrong += _unlike(failure, each, answer)
    assert wrong == []


def _unlike(failure: Failure, asked: Asked, answer: Any) -> list[str]:
    """What is wrong with the answer, in a list of at most one."""
    place = f"{asked.method} {asked.template}"
    if not isinstance(answer, failure.kind):
        return [f"{place}: {answer!r}"]
    right = answer.status_code == failure.status and answer.code in failure.codes
    whole = answer.request_id and answer.message and answer.type
    return [] if right and whole else [f"{place}: {answer.status_code} {answer.code} {answer.request_id}"]
