"""Each method of the stock `openai` package does here what it does at OpenAI, or is refused in OpenAI's own way."""

from pathlib import Path
from typing import Any

import openai
import pytest

from service.app import public_routes
from service.openapi.document import document, operations
from tests.service.conftest import Service
from tests.service.contract.calling import call, call_async, refuse, refuse_async
from tests.service.contract.compatibility import ABSENT, CALLS, World, methods, table
from tests.service.contract.conftest import Tenant

PUT = {path for path, method, _ in operations(document(public_routes())) if method == "put"}
PATHS = sorted({path for path, _, _ in operations(document(public_routes())) if path.startswith("/v1/")} - PUT)
OPEN_ENDED = ("/{model}", "/{path}", "/v1/models")
"""Names with slashes are names there, so that there is no path below them."""


@pytest.fixture(scope="module")
def options(service: Service, world: tuple[Tenant, World]) -> dict[str, Any]:
    return {
        "api_key": world[0].key,
        "base_url": f"{service.url}/v1",
        "max_retries": 0,
        "timeout": 60,
    }


def test_the_tables_have_every_method_of_the_installed_package() -> None:
    called = {name.partition(" ")[0] for name in CALLS}
    assert called | set(ABSENT) == set(methods())
    assert not called & set(ABSENT)


def test_the_document_for_people_is_current() -> None:
    path = Path(__file__).parents[3] / "docs/compatibility.md"
    assert path.read_text() == table(), "run `make openapi`"


@pytest.mark.parametrize("name", CALLS)
def test_works(options: dict[str, Any], world: tuple[Tenant, World], name: str) -> None:
    call(options, world[1], name)


@pytest.mark.parametrize("name", CALLS)
async def test_works_async(options: dict[str, Any], world: tuple[Tenant, World], name: str) -> None:
    await call_async(options, world[1], name)


@pytest.mark.parametrize("name", ABSENT)
def test_is_refused_with_the_packages_own_exception(
    options: dict[str, Any], world: tuple[Tenant, World], name: str
) -> None:
    refuse(options, world[1], name)


@pytest.mark.parametrize("name", ABSENT)
async def test_is_refused_async(options: dict[str, Any], world: tuple[Tenant, World], name: str) -> None:
    await refuse_async(options, world[1], name)


@pytest.mark.parametrize("name", ["files.list", "fine_tuning.jobs.list", "models.list", "chat.completions.create"])
async def test_raw_answers_name_their_request(options: dict[str, Any], world: tuple[Tenant, World], name: str) -> None:
    with openai.OpenAI(**options) as client:
        answer = CALLS[name](client.with_raw_response, world[1])
    async with openai.AsyncOpenAI(**options) as later:
        other = await CALLS[name](later.with_raw_response, world[1])
    assert answer.request_id == answer.headers["x-request-id"]
    assert other.request_id == other.headers["x-request-id"] != answer.request_id


@pytest.mark.parametrize("path", PATHS)
def test_every_route_refuses_in_the_packages_own_classes(options: dict[str, Any], path: str) -> None:
    with openai.OpenAI(**options) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            client.put(path.removeprefix("/v1"), cast_to=object, body={})
        assert (refused.value.status_code, refused.value.code) == (405, "method_not_allowed")
        with pytest.raises(openai.APIStatusError) as refused:
            client.post(f"{path.removeprefix('/v1')}/a/b/c/d", cast_to=object, body={})
        expected = (405, "method_not_allowed") if path.endswith(OPEN_ENDED) else (404, "unknown_url")
        assert (refused.value.status_code, refused.value.code) == expected
        assert refused.value.request_id
