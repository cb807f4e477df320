"""A whole replica: the real launcher, the real vLLM, a tiny random base, and a service that keeps every message.

The tests share one replica and run in order; the last ones kill it and see it come back.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import torch
from aiohttp import web

from service.contracts.replica import ReplicaOrders
from tests.conftest import free_port
from tests.inference.adapters import lora, lora_tensors
from tests.inference.conftest import ServiceAndStorage, replica_settings
from tests.inference.hostile import HOSTILE
from tests.inference.running import PROMPT, Replica, chat, running_replica

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
async def module_service() -> AsyncIterator[ServiceAndStorage]:
    server = ServiceAndStorage(orders=ReplicaOrders(heartbeat_seconds=0.2))
    runner = web.AppRunner(server.application(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest.fixture(scope="module")
async def replica(
    module_service: ServiceAndStorage, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Replica]:
    async with running_replica(module_service, tmp_path_factory.mktemp("replica")) as replica:
        yield replica


@pytest.fixture
async def ready(replica: Replica) -> Replica:
    await replica.until(lambda: bool(replica.service.heartbeats) and replica.now.state == "ready", "ready")
    return replica


def publish(replica: Replica, *seeds: int) -> list[str]:
    return [replica.service.publish(lora(seed)) for seed in seeds]


async def test_becomes_ready_and_says_so(ready: Replica) -> None:
    assert ready.service.heartbeats[0].state == "starting"
    assert ready.now.context_length == 256
    assert len(ready.now.api_key) >= 32
    assert "vLLM ready after" in ready.log.read_text()


async def test_base_and_adapters_answer_differently(ready: Replica) -> None:
    base, tier = await ready.chat("base")
    assert tier is None
    adapters = publish(ready, 1, 2, 3)
    answers = [await ready.chat(adapter) for adapter in adapters]
    assert [tier for _, tier in answers] == ["store"] * 3
    assert len({tuple(base), *(tuple(tokens) for tokens, _ in answers)}) == 4
    assert await ready.chat(adapters[-1]) == (answers[-1][0], "gpu")
    assert (await ready.chat("base"))[0] == base


async def test_stream_brings_chunks_and_usage(ready: Replica) -> None:
    (adapter,) = publish(ready, 1)
    body = chat(adapter, 8, stream=True, stream_options={"include_usage": True})
    headers = {"Authorization": f"Bearer {ready.now.api_key}"}
    async with ready.session.post(f"{ready.now.url}/v1/chat/completions", json=body, headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "x-adapter-cache" in response.headers
        events = [line[6:].strip() async for line in response.content if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert len(chunks) > 3
    assert chunks[-1]["usage"]["completion_tokens"] == 8


async def test_text_completions_take_the_same_way(ready: Replica) -> None:
    (adapter,) = publish(ready, 4)
    body = {"model": adapter, "prompt": PROMPT, "max_tokens": 2}
    status, answer, headers = await ready.post("/v1/completions", body)
    assert (status, headers["x-adapter-cache"]) == (200, "store")
    assert answer["model"] == adapter


@pytest.mark.parametrize("by", ["route", "order"])
async def test_evicted_adapter_is_gone_and_comes_back(ready: Replica, by: str) -> None:
    (adapter,) = publish(ready, 1)
    before, _ = await ready.chat(adapter)
    assert (ready.cache / adapter).is_dir()
    if by == "route":
        status, answer, _ = await ready.post("/v1/weft/adapters/evict", {"adapter_id": adapter})
        assert (status, answer["tier"]) == (200, None)
    else:
        ready.service.orders = ReplicaOrders(evict=(adapter,), heartbeat_seconds=0.2)
        await ready.until(lambda: not (ready.cache / adapter).exists(), "evicted", 20)
        ready.service.orders = ReplicaOrders(heartbeat_seconds=0.2)
        await asyncio.sleep(0.5)
    assert not (ready.cache / adapter).exists()
    await ready.chat("base")
    assert await ready.chat(adapter) == (before, "store")


async def test_ensure_warms_an_adapter(ready: Replica) -> None:
    (adapter,) = publish(ready, 5)
    status, answer, _ = await ready.post("/v1/weft/adapters/ensure", {"adapter_id": adapter})
    assert (status, answer) == (200, {"adapter_id": adapter, "tier": "store"})
    assert (await ready.chat(adapter))[1] == "gpu"
    status, answer, _ = await ready.post("/v1/weft/adapters/ensure", {"adapter_id": "0" * 64})
    assert (status, answer["error"]["code"]) == (404, "adapter_not_found")


async def test_six_adapters_at_once_over_two_slots(ready: Replica) -> None:
    adapters = publish(ready, *range(10, 16))
    alone = {adapter: await ready.chat(adapter) for adapter in adapters}
    answers = await asyncio.gather(*(ready.chat(adapter) for adapter in adapters * 4))
    assert len({tuple(tokens) for tokens, _ in alone.values()}) == 6
    for adapter, (tokens, _) in zip(adapters * 4, answers, strict=True):
        assert tokens == alone[adapter][0], "batched with others, each adapter answers as it does alone"
    assert (await ready.status())["in_flight"] == {}


async def test_vllm_knows_no_more_adapters_than_it_can_hold(ready: Replica) -> None:
    for adapter in publish(ready, *range(20, 26)):
        await ready.chat(adapter, 1)
    tiers = Counter((await ready.status())["adapters"].values())
    assert (tiers["gpu"], tiers["cpu"]) == (2, 2)
    await ready.until(lambda: len(ready.now.adapters) >= 4, "announced", 10)


async def test_departed_client_frees_its_slot(ready: Replica) -> None:
    (adapter,) = publish(ready, 1)
    headers = {"Authorization": f"Bearer {ready.now.api_key}"}
    body = chat(adapter, 200, stream=True)
    response = await ready.session.post(f"{ready.now.url}/v1/chat/completions", json=body, headers=headers)
    await response.content.readany()
    response.close()
    async with asyncio.timeout(1):
        while (await ready.status())["in_flight"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (await ready.chat(adapter))[1] == "gpu"


async def test_metrics_are_ours(ready: Replica) -> None:
    async with ready.session.get(f"{ready.now.url}/metrics") as response:
        page = await response.text()
    assert 'weft_adapters_resident{tier="gpu"} 2.0' in page
    assert 'weft_tokens_total{kind="completion",tenant="weft-canary"}' in page
    assert "lora_requests_info" not in page


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/invocations", "/tokenize", "/v1/responses", "/adapters"])
async def test_vllms_other_routes_are_unreachable(ready: Replica, path: str) -> None:
    status, answer, _ = await ready.post(path, {"lora_name": "x", "lora_path": "/"})
    assert (status, answer["error"]["code"]) == (404, "not_found")


async def test_key_is_needed(ready: Replica) -> None:
    status, answer, _ = await ready.post("/v1/chat/completions", chat("base"), key="wrong")
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")


async def test_hostile_adapters_change_nothing_for_others(ready: Replica) -> None:
    (good,) = publish(ready, 1)
    before = (await ready.chat("base"))[0], (await ready.chat(good))[0]
    for kind, (make, _) in HOSTILE.items():
        status, answer, _ = await ready.post("/v1/chat/completions", chat(ready.service.publish(make())))
        assert (status, answer["error"]["code"]) == (422, "adapter_invalid"), kind
        assert len(answer["error"]["message"]) > len("This adapter cannot be served: "), kind
    assert ((await ready.chat("base"))[0], (await ready.chat(good))[0]) == before


async def test_largest_admitted_values_change_nothing_for_others(ready: Replica) -> None:
    before = (await ready.chat("base"))[0]
    tensors = {name: torch.full_like(value, 1e3) for name, value in lora_tensors(1).items()}
    await ready.post("/v1/chat/completions", chat(ready.service.publish(lora(1, tensors=tensors, lora_alpha=256))))
    assert (await ready.chat("base"))[0] == before


async def test_service_outage_does_not_stop_serving(ready: Replica) -> None:
    (known,) = publish(ready, 1)
    await ready.chat(known)
    ready.service.service_status = 503
    assert (await ready.chat(known))[1] == "gpu"
    status, answer, headers = await ready.post("/v1/chat/completions", chat(publish(ready, 99)[0]))
    ready.service.service_status = None
    assert (status, answer["error"]["code"]) == (503, "adapter_storage_unavailable")
    assert "retry-after" in headers


async def restarted(replica: Replica, since: int) -> None:
    await replica.until_state("starting", since)
    after = next(n for n, beat in enumerate(replica.service.heartbeats) if n >= since and beat.state == "starting")
    await replica.until_state("ready", after)
    (hot,) = publish(replica, 1)
    async with asyncio.timeout(10):
        while (await replica.status())["adapters"].get(hot) == "disk":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert (await replica.chat(hot))[1] in ("gpu", "cpu"), "what was hot is loaded again before it is asked for"


async def test_killed_engine_comes_back(ready: Replica) -> None:
    (hot,) = publish(ready, 1)
    await ready.chat(hot)
    hottest = ready.cache.parent / "hottest.json"
    await ready.until(lambda: hottest.exists() and hot in hottest.read_text(), "written down", 10)
    since = len(ready.service.heartbeats)
    ready.engine().kill()
    await restarted(ready, since)


async def test_killed_api_server_comes_back(ready: Replica) -> None:
    since = len(ready.service.heartbeats)
    engine = ready.engine()
    ready.api_server().kill()
    await restarted(ready, since)
    assert not engine.is_running()


async def test_hung_engine_is_replaced(ready: Replica) -> None:
    since = len(ready.service.heartbeats)
    engine = ready.engine()
    began = time.monotonic()
    engine.suspend()
    await ready.until_state("down", since)
    assert time.monotonic() - began < 12
    await restarted(ready, since)
    assert not engine.is_running()


async def test_killed_launcher_takes_vllm_along(ready: Replica, tmp_path: Path) -> None:
    """A second replica, so that the shared one lives on."""
    settings = replica_settings("http://127.0.0.1:9", tmp_path, port=free_port())
    with (tmp_path / "log").open("wb") as output:
        launcher = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inference", env=settings.for_child(), stdout=output, stderr=output
        )
    await ready.until(lambda: len(psutil.Process(launcher.pid).children()) == 1, "started", 30)
    (child,) = psutil.Process(launcher.pid).children()
    launcher.kill()
    await launcher.wait()
    await ready.until(lambda: not child.is_running(), "gone", 10)


async def test_sigterm_leaves_no_process(ready: Replica) -> None:
    processes = ready.processes()
    group = ready.api_server().pid
    long = asyncio.create_task(ready.chat("base", 100))
    await asyncio.sleep(0.2)
    ready.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        assert await ready.process.wait() == 0
    assert len((await long)[0]) == 100, "a request in flight is answered before vLLM ends"
    assert ready.now.state == "draining"
    assert ready.service.deregistered == 1
    assert not any(process.is_running() for process in processes)
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
