"""Admission as an HTTP peer sees it: which routes there are, whose key opens them, what a body must be."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inference.admission import Admission
from inference.connections import Connection
from inference.runtime import Runtime
from inference.settings import ReplicaSettings
from tests.inference.adapters import lora
from tests.inference.conftest import ServiceAndStorage, make_runtime, replica_settings
from tests.inference.stand_in import CHAT, KEY, Call, Client, StandIn, until

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/adapters"),
        ("POST", "/invocations"),
        ("POST", "/tokenize"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1//chat/completions"),
        ("GET", CHAT),
        ("OPTIONS", CHAT),
        ("GET", "/v1/responses/resp_1"),
        ("POST", "/v1/embeddings"),
        ("POST", "/health"),
    ],
)
async def test_every_other_route_is_absent(call: Call, method: str, path: str) -> None:
    client = await call(path=path, method=method).done()
    assert client.status == 404
    assert client.error["code"] == "not_found"
    assert client.parts_read == 0


@pytest.mark.parametrize("path", ["/health", "/metrics"])
async def test_health_and_metrics_need_no_key(call: Call, path: str) -> None:
    assert (await call(path=path, method="GET", key=b"").done()).body == b"vllm"


@pytest.mark.parametrize("key", [b"", b"Bearer wrong", KEY[:-1], KEY + b"x", b"replica-key-0123456789"])
@pytest.mark.parametrize(("method", "path"), [("POST", CHAT), ("GET", "/v1/weft/status")])
async def test_wrong_key_is_refused_before_the_body_is_read(
    call: Call, vllm: StandIn, key: bytes, method: str, path: str
) -> None:
    client = await call(key=key, method=method, path=path).done()
    assert client.status == 401
    assert client.error["code"] == "invalid_api_key"
    assert client.parts_read == 0
    assert vllm.bodies == []


async def test_base_passes_unchanged(call: Call, vllm: StandIn) -> None:
    body = b'{ "messages" : [ ],\n"model":"base", "x": 1e400}'
    client = await call(body=body).done()
    assert client.status == 200
    assert "x-adapter-cache" not in client.headers
    assert vllm.bodies == [body]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"messages":[]}', b'{"model":7}', b'{"model":"a\xff"}', b"null"])
async def test_body_without_a_model_is_a_bad_request(call: Call, vllm: StandIn, body: bytes) -> None:
    client = await call(body=body).done()
    assert (client.status, client.error["param"]) == (400, "model")
    assert vllm.bodies == []


async def test_model_is_read_as_vllm_reads_it(call: Call) -> None:
    """The last of repeated keys counts, escaped or not; else an adapter could be used without being counted."""
    client = await call(body=b'{"model":"base","mod\\u0065l":"ft:other"}').done()
    assert (client.status, client.error["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("model", ["gpt-4o", "A" * 64, "f" * 63, "../" + "f" * 64, "f" * 64 + "\n"])
async def test_other_names_are_unknown_models(call: Call, service: ServiceAndStorage, model: str) -> None:
    client = await call(model).done()
    assert (client.status, client.error["code"]) == (404, "model_not_found")
    assert not service.described


async def test_body_is_bounded(call: Call, small: ReplicaSettings, vllm: StandIn) -> None:
    client = await call(body=b" " * (small.max_body_bytes + 1)).done()
    assert (client.status, client.error["code"]) == (413, "payload_too_large")
    assert vllm.bodies == []


async def test_long_bodies_that_wait_are_refused_once_they_are_too_much(
    service: ServiceAndStorage, vllm: StandIn, small: ReplicaSettings
) -> None:
    limit = small.max_body_bytes
    changes = {"queue_bytes": limit, "tenant_queue_bytes": limit, "max_in_flight": 1, "tenant_in_flight": 1}
    runtime = make_runtime(small.model_copy(update=changes), vllm)
    admission = Admission(vllm)
    vllm.gate.clear()

    def ask() -> Client:
        return Client(admission, runtime, CHAT, b'{"model":"base"}'.ljust(limit * 2 // 3), KEY, "POST", "t")

    running, waiting = ask(), ask()
    await until(lambda: runtime.status().waiting == 1)
    refused = await ask().done()
    assert (refused.status, refused.error["code"]) == (503, "no_capacity")
    assert int(refused.headers["retry-after"]) >= 1
    vllm.gate.set()
    for client in (running, waiting):
        assert (await client.done()).status == 200
    await runtime.close()


async def test_end_of_the_server_ends_fetches(service: ServiceAndStorage, vllm: StandIn, runtime: Runtime) -> None:
    """vLLM takes the application's state apart in its own shutdown, so ours comes first."""
    service.slow_seconds = 2.0
    server = SimpleNamespace(config=SimpleNamespace(http_protocol_class=None))
    app = SimpleNamespace(state=SimpleNamespace(weft=runtime, server=server))
    fetching = asyncio.create_task(runtime.residency.ensure(service.publish(lora(1))))
    await until(lambda: bool(service.downloaded))
    answers = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        del app.state
        await send({"type": "lifespan.shutdown.complete"})

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.shutdown"}

    async def send(message: Any) -> None:
        answers.append(message)

    await Admission(application)({"type": "lifespan", "app": app}, receive, send)
    assert answers == [{"type": "lifespan.shutdown.complete"}]
    assert issubclass(server.config.http_protocol_class, Connection)
    assert server.config.http_protocol_class.stall_seconds == runtime.stall_seconds
    with pytest.raises(asyncio.CancelledError):
        await fetching


def test_queue_that_one_request_could_not_enter_is_no_setting(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_body_bytes"):
        replica_settings("http://127.0.0.1:1", tmp_path, queue_bytes=1 << 20)
