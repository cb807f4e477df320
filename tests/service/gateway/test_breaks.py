"""Clients that leave or do not read, replicas that die, load and restart: what each side sees, and what is booked."""

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from aiohttp import web

from service.gateway import abandoned
from service.gateway.abandoned import PAUSE_SECONDS
from tests.conftest import free_port, wait_until
from tests.service.conftest import Service
from tests.service.gateway.captured import CHAT_COUNTED, FAILED_EVENT
from tests.service.gateway.conftest import BASE, Ledger, Tenant, beat, chat
from tests.service.gateway.upstream import Upstream, endless, named


def connect(service: Service, key: str, body: dict[str, object], receive_buffer: int | None = None) -> socket.socket:
    """A bare connection with one chat request on its way."""
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(("127.0.0.1", service.settings.port))
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
    )
    connection.sendall(head.encode() + payload)
    return connection


def hang_up(connection: socket.socket) -> None:
    """A reset, as of a process that was killed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_client_that_leaves_a_stream_ends_it_upstream_and_pays_for_what_it_got(
    service: Service, upstream: Upstream, tenant: Tenant, ledger: Ledger, how: str
) -> None:
    async def talk(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await upstream.stream(request, endless(body["model"], prompt_tokens=6), 0.01)

    upstream.script = talk
    before = len(ledger.of(tenant))
    connection = connect(service, tenant.key, chat(tenant.model, stream=True))
    received = b""
    while received.count(b"data: ") < 10:
        received += connection.recv(65536)
    hang_up(connection) if how == "reset" else connection.close()
    wait_until(lambda: upstream.aborted == 1, seconds=1, what="the upstream request is aborted")
    wait_until(lambda: len(ledger.of(tenant)) == before + 1, what="the usage is booked")
    ((model, prompt, completion),) = ledger.of(tenant)[before:]
    got = received.count(b'"content":"x"')
    assert (model, prompt) == (tenant.model, 6)
    # What was under way when the client left is on it: events of at most a second.
    assert got <= completion <= got + 100


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_its_answer_ends_it_upstream_and_pays_for_what_was_done(
    service: Service, upstream: Upstream, tenant: Tenant, ledger: Ledger, stream: bool
) -> None:
    async def think(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    upstream.script = think
    before = ledger.of(tenant)
    connection = connect(service, tenant.key, chat(tenant.model, stream=stream))
    wait_until(lambda: len(upstream.bodies) == 1, what="the replica is asked")
    connection.close()
    wait_until(lambda: upstream.aborted == 1, seconds=1, what="the upstream request is aborted")
    # It is asked again until it knows; of what its engine never had, it knows nothing.
    wait_until(lambda: upstream.spent_asked >= 2, what="the replica is asked what it cost")
    assert ledger.of(tenant) == before
    upstream.spent[upstream.headers[0]["x-request-id"]] = (300, 40)
    wait_until(lambda: len(ledger.of(tenant)) > len(before), what="the usage is booked")
    assert ledger.of(tenant) == [*before, (tenant.model, 300, 40)]
    asked = upstream.spent_asked
    time.sleep(3 * PAUSE_SECONDS)
    assert upstream.spent_asked == asked, "nothing is left to ask about"


def test_what_no_replica_knows_of_an_abandoned_request_is_not_booked_and_not_asked_for_ever(
    service: Service, upstream: Upstream, tenant: Tenant, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def think(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    monkeypatch.setattr(abandoned, "PATIENCE_SECONDS", 2 * PAUSE_SECONDS)
    upstream.script = think
    before = ledger.of(tenant)
    connection = connect(service, tenant.key, chat(tenant.model))
    wait_until(lambda: len(upstream.bodies) == 1, what="the replica is asked")
    connection.close()
    waiting = service.app.state.gateway.abandoned.waiting
    wait_until(lambda: upstream.spent_asked > 0, what="the replica is asked what it cost")
    wait_until(lambda: not waiting, what="it is given up")
    assert ledger.of(tenant) == before


def test_a_replica_that_dies_in_the_middle_ends_the_stream_with_an_error_event(
    service: Service, upstream: Upstream, client: Callable[[str], openai.OpenAI], tenant: Tenant, ledger: Ledger
) -> None:
    async def die(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        whole = [named(event, body["model"]) for event in CHAT_COUNTED[:3]]
        # The last event is cut in half: no client may see that half.
        return await upstream.stream(request, [*whole[:2], whole[2][:40]], 0.05, ends=False)

    upstream.script = die
    before = len(ledger.of(tenant))
    received = []
    stream = client(tenant.key).chat.completions.create(**chat(tenant.model, stream=True))  # type: ignore[call-overload]
    with pytest.raises(openai.APIError, match="stopped in the middle") as caught:
        received.extend(chunk.choices[0].delta.content for chunk in stream)
    assert received == ["", "He said "]
    assert caught.value.code == "server_error"
    assert ledger.of(tenant)[before:] == [(tenant.model, 6, 1)]
    raw = httpx2.post(
        f"{service.url}/v1/chat/completions",
        json=chat(tenant.model, stream=True),
        headers={"authorization": f"Bearer {tenant.key}"},
    )
    assert raw.text.endswith('"code":"server_error"}}\n\n')
    assert "[DONE]" not in raw.text


def test_vllms_own_failure_in_the_middle_is_passed_on_in_our_words(
    upstream: Upstream, http: httpx2.Client, tenant: Tenant
) -> None:
    async def fail(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        events = [named(event, body["model"]) for event in CHAT_COUNTED[:2]]
        return await upstream.stream(request, [*events, FAILED_EVENT, b"data: [DONE]\n\n"], 0.02)

    upstream.script = fail
    lines = http.post("/chat/completions", json=chat(tenant.model, stream=True)).text.strip().split("\n\n")
    assert len(lines) == 3
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "server_error"


def test_a_failure_before_the_first_byte_is_tried_once_more(
    upstream: Upstream, http: httpx2.Client, tenant: Tenant, ledger: Ledger
) -> None:
    before = len(ledger.of(tenant))
    failures = 0

    async def once(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal failures
        failures += 1
        if failures % 2:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return await upstream.usual(request, body)

    upstream.script = once
    assert http.post("/chat/completions", json=chat(tenant.model)).status_code == 200
    assert http.post("/chat/completions", json=chat(tenant.model, stream=True)).text.endswith("[DONE]\n\n")
    assert failures == 4
    assert len(ledger.of(tenant)) == before + 2


def test_a_second_replica_takes_over_and_a_500_is_not_repeated_on_the_same(
    service: Service, upstream: Upstream, http: httpx2.Client, tenant: Tenant
) -> None:
    async def crash(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "boom", "type": "x", "param": None, "code": 500}}, status=500)

    upstream.script = crash
    alone = http.post("/chat/completions", json=chat(tenant.model))
    assert (alone.status_code, alone.json()["error"]["code"]) == (503, "replica_unavailable")
    assert "boom" not in alone.text
    assert len(upstream.bodies) == 1
    second = Upstream(free_port())
    second.start()
    try:
        beat(service, second)
        for model in (tenant.model, BASE):
            assert http.post("/chat/completions", json=chat(model)).status_code == 200
        second.script = crash
        assert http.post("/chat/completions", json=chat(BASE)).status_code == 503
    finally:
        beat(service, second, "down")
        second.stop()


def test_a_restarting_replica_is_a_503_that_the_sdks_own_retries_survive(
    service: Service, upstream: Upstream, tenant: Tenant
) -> None:
    gone = Upstream(free_port())
    beat(service, upstream, "down")
    beat(service, gone)
    headers = {"authorization": f"Bearer {tenant.key}"}
    started = time.monotonic()
    answer = httpx2.post(f"{service.url}/v1/chat/completions", json=chat(tenant.model), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_unavailable")
    assert float(answer.headers["retry-after"]) > 0
    assert time.monotonic() - started < 2
    sdk = openai.OpenAI(api_key=tenant.key, base_url=f"{service.url}/v1", max_retries=2)
    try:
        timer = threading.Timer(0.5, gone.start)
        timer.start()
        answered = sdk.chat.completions.create(**chat(tenant.model))  # type: ignore[call-overload]
        assert answered.usage.completion_tokens == 3
    finally:
        timer.join()
        sdk.close()
        beat(service, gone, "down")
        gone.stop()


def test_a_replica_with_a_new_key_is_found_again(
    service: Service, upstream: Upstream, http: httpx2.Client, tenant: Tenant
) -> None:
    old, upstream.api_key = upstream.api_key, "another-upstream-key"
    try:
        assert http.post("/chat/completions", json=chat(BASE)).status_code == 503
        beat(service, upstream)
        wait_until(
            lambda: http.post("/chat/completions", json=chat(BASE)).status_code == 200, seconds=5, what="the new key"
        )
    finally:
        upstream.api_key = old


def test_a_cold_adapter_is_held_until_it_is_there_or_the_wait_is_over(
    service: Service, upstream: Upstream, http: httpx2.Client, tenant: Tenant
) -> None:
    ready_at = time.monotonic() + 1.0
    loading = {"message": "loading", "type": "server_error", "param": None, "code": "adapter_loading"}

    async def cold(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if time.monotonic() < ready_at:
            return web.json_response({"error": loading}, status=503, headers={"Retry-After": "0.1"})
        return await upstream.usual(request, body)

    upstream.script = cold
    for stream in (False, True):
        ready_at = time.monotonic() + 0.5
        assert http.post("/chat/completions", json=chat(tenant.model, stream=stream)).status_code == 200
    ready_at = time.monotonic() + 60
    started = time.monotonic()
    answer = http.post("/chat/completions", json=chat(tenant.model))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "adapter_loading")
    assert service.settings.cold_wait_seconds <= time.monotonic() - started < service.settings.cold_wait_seconds + 2


def test_connections_to_the_replica_are_used_again(upstream: Upstream, http: httpx2.Client) -> None:
    ports = set()

    async def seen(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        return await upstream.usual(request, body)

    upstream.script = seen
    for stream in (True, False) * 3:
        assert http.post("/chat/completions", json=chat(BASE, stream=stream)).status_code == 200
    assert len(ports) == 1
