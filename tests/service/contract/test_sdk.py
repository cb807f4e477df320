"""Each method of the stock `openai` package does here what it does at OpenAI, or is refused in OpenAI's own way."""

from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJobEvent as JobEvent

from tests.service.conftest import Service
from tests.service.contract.calling import call, call_async, refuse, refuse_async
from tests.service.contract.compatibility import ABSENT, CALLS, Call, World, methods, table
from tests.service.contract.conftest import Tenant


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


def test_both_clients_have_the_same_methods() -> None:
    assert list(methods(openai.AsyncOpenAI)) == list(methods())


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


PROMPT: Any = {"input": "Hi", "stream": True}
STREAMS: dict[str, Call] = {
    **{name: CALLS[name] for name in ("chat.completions.create (stream)", "completions.create (stream)")},
    "responses.create (stream)": lambda c, w: c.responses.create(model=w.ids["model"], **PROMPT),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_streams_name_their_request(options: dict[str, Any], world: tuple[Tenant, World], name: str) -> None:
    with openai.OpenAI(**options) as client:
        answer = STREAMS[name](client, world[1])
        assert list(answer)
    async with openai.AsyncOpenAI(**options) as later:
        other = await STREAMS[name](later, world[1])
        assert [event async for event in other]
    assert answer.response.headers["x-request-id"]
    assert other.response.headers["x-request-id"] != answer.response.headers["x-request-id"]


async def test_a_stream_of_events_names_its_request(options: dict[str, Any], world: tuple[Tenant, World]) -> None:
    # The job has ended, and so does the stream.
    path = f"/fine_tuning/jobs/{world[0].ids['job']}/events?stream=true"
    with openai.OpenAI(**options) as client:
        events = client.get(path, cast_to=JobEvent, stream=True, stream_cls=openai.Stream[JobEvent])
        assert list(events)
    async with openai.AsyncOpenAI(**options) as later:
        others = await later.get(path, cast_to=JobEvent, stream=True, stream_cls=openai.AsyncStream[JobEvent])
        assert [event async for event in others]
    assert events.response.headers["x-request-id"] != others.response.headers["x-request-id"]
