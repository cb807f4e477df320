"""Completions through the stock SDK and as raw bytes: what the client sees, what vLLM is sent, what is booked."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest

from tests.service.conftest import Service
from tests.service.gateway.captured import CHAT_COUNTED, CHAT_PLAIN, CHAT_WHOLE
from tests.service.gateway.conftest import BASE, Ledger, Tenant, chat
from tests.service.gateway.upstream import Upstream, named

TEXT = 'He said "usage":{}!'


def test_an_answer_shows_the_public_name_and_is_otherwise_untouched(
    upstream: Upstream, http: httpx2.Client, tenant: Tenant
) -> None:
    answer = http.post("/chat/completions", json=chat(tenant.model))
    assert answer.status_code == 200
    assert answer.content == named(CHAT_WHOLE, tenant.model)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert answer.headers["openai-processing-ms"].isdigit()
    assert upstream.bodies[0]["model"] == tenant.adapter


def test_the_sdk_reads_answers_streams_and_usage(
    upstream: Upstream, client: Callable[[str], openai.OpenAI], tenant: Tenant
) -> None:
    sdk = client(tenant.key)
    whole = sdk.chat.completions.create(model=tenant.model, messages=[{"role": "user", "content": "Hi"}])
    assert (whole.choices[0].message.content, whole.model) == (TEXT, tenant.model)
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (6, 3)

    chunks = list(sdk.chat.completions.create(**chat(tenant.model, stream=True)))  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == TEXT
    assert {chunk.model for chunk in chunks} == {tenant.model}
    assert all(chunk.usage is None for chunk in chunks)

    text = list(sdk.completions.create(model=BASE, prompt=["Hi", "Hello"], stream=True))
    assert [chunk.choices[0].text for chunk in text] == ["i", "", "", ""]


async def test_the_async_sdk_streams_with_usage(service: Service, upstream: Upstream, tenant: Tenant) -> None:
    async with openai.AsyncOpenAI(api_key=tenant.key, base_url=f"{service.url}/v1", max_retries=0) as sdk:
        stream = await sdk.chat.completions.create(
            **chat(tenant.model, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
        )
        chunks = [chunk async for chunk in stream]
        answers = await asyncio.gather(
            *(sdk.chat.completions.create(**chat(BASE)) for _ in range(8))  # type: ignore[call-overload]
        )
    *first, last = chunks
    assert [chunk.usage for chunk in first] == [None] * 4
    assert (last.choices, last.usage.prompt_tokens, last.usage.completion_tokens) == ([], 6, 3)
    assert {answer.choices[0].message.content for answer in answers} == {TEXT}


@pytest.mark.parametrize("model", ["adapter", BASE])
def test_a_stream_is_vllms_own_bytes_without_its_counts(
    upstream: Upstream, http: httpx2.Client, tenant: Tenant, model: str
) -> None:
    name = tenant.model if model == "adapter" else BASE
    plain = [named(event, name) for event in CHAT_PLAIN]

    def stream(**options: object) -> bytes:
        return http.post("/chat/completions", json=chat(name, stream=True, **options)).content

    assert stream() == b"".join(plain[:4] + plain[5:])
    assert stream(stream_options={"include_usage": False}) == b"".join(plain[:4] + plain[5:])
    # As OpenAI sends it: null everywhere but in the last.
    with_null = [_with_null(event) for event in CHAT_COUNTED[:4]]
    shown = [named(event, name) for event in with_null] + plain[4:]
    assert stream(stream_options={"include_usage": True}) == b"".join(shown)
    every = [named(event, name) for event in CHAT_COUNTED]
    assert stream(stream_options={"include_usage": True, "continuous_usage_stats": True}) == b"".join(every)


def _with_null(event: bytes) -> bytes:
    start = event.index(b',"usage":{"prompt')
    end = event.index(b"}", start) + 1
    return event[:start] + b',"usage":null' + event[end:]


def test_every_completion_is_booked_once_with_vllms_own_counts(
    upstream: Upstream, http: httpx2.Client, tenant: Tenant, ledger: Ledger
) -> None:
    before = len(ledger.of(tenant))
    http.post("/chat/completions", json=chat(tenant.model))
    http.post("/chat/completions", json=chat(BASE, stream=True))
    http.post("/completions", json={"model": BASE, "prompt": ["Hi", "Hello"], "stream": True})
    http.post("/chat/completions", json=chat("no-such-model"))
    assert ledger.of(tenant)[before:] == [(tenant.model, 6, 3), (BASE, 6, 3), (BASE, 7, 4)]


def test_a_clients_request_id_cannot_make_the_ledger_book_less(
    upstream: Upstream, http: httpx2.Client, tenant: Tenant, ledger: Ledger
) -> None:
    before = len(ledger.of(tenant))
    for _ in range(2):
        answer = http.post("/chat/completions", json=chat(BASE), headers={"x-request-id": "mine"})
        assert answer.headers["x-request-id"] == "mine"
    assert len(ledger.of(tenant)) == before + 2
    sent = {headers["x-request-id"] for headers in upstream.headers}
    assert len(sent) == 2
    assert "mine" not in sent


def test_the_cache_salt_is_the_tenants_and_never_the_clients(
    upstream: Upstream, service: Service, tenant: Tenant, neighbour: Tenant
) -> None:
    def salt(key: str, **fields: Any) -> str:
        headers = {"authorization": f"Bearer {key}"}
        answer = httpx2.post(f"{service.url}/v1/chat/completions", json=chat(BASE, **fields), headers=headers)
        assert answer.status_code == 200
        return upstream.bodies[-1]["cache_salt"]

    own, theirs = salt(tenant.key), salt(neighbour.key)
    assert own == salt(tenant.key, cache_salt=theirs)
    assert own != theirs
    assert len(own) >= 43
    # vLLM refuses a salt with any of these.
    assert not set(own + theirs) & set("@/\\\0")
    assert tenant.project not in own


def test_hints_of_openais_clients_are_taken_and_go_no_further(
    upstream: Upstream, http: httpx2.Client, tenant: Tenant
) -> None:
    hints = {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "s"}
    extras = {
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "ignore_eos": True,
        "structured_outputs": {"regex": "a"},
    }
    answer = http.post("/chat/completions", json=chat(BASE, **hints, **extras, temperature=None))
    assert answer.status_code == 200
    sent = dict(upstream.bodies[0])
    assert sent.pop("cache_salt")
    assert sent == chat(BASE, **extras)


def test_the_cache_tier_is_passed_through(upstream: Upstream, http: httpx2.Client, tenant: Tenant) -> None:
    upstream.extra_headers = {"x-adapter-cache": "disk"}
    assert http.post("/chat/completions", json=chat(tenant.model)).headers["x-adapter-cache"] == "disk"
    streamed = http.post("/chat/completions", json=chat(tenant.model, stream=True))
    assert streamed.headers["x-adapter-cache"] == "disk"
    assert streamed.headers["content-type"].startswith("text/event-stream")


def test_a_model_that_prints_its_own_id_changes_nothing_else(
    upstream: Upstream, http: httpx2.Client, tenant: Tenant
) -> None:
    said = json.dumps(f'{{"model":"{tenant.adapter}"}}').encode()[1:-1]

    async def answer(request: Any, body: dict[str, Any]) -> Any:
        events = [named(event.replace(b"He said ", said), body["model"]) for event in CHAT_COUNTED]
        return await upstream.stream(request, events)

    upstream.script = answer
    sdk = http.post("/chat/completions", json=chat(tenant.model, stream=True)).text
    first = [json.loads(line.removeprefix("data: ")) for line in sdk.splitlines() if line.startswith('data: {"id')]
    assert first[1]["choices"][0]["delta"]["content"] == f'{{"model":"{tenant.adapter}"}}'
    assert {event["model"] for event in first} == {tenant.model}
