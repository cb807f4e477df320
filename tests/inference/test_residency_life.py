"""How adapters come and go while requests wait and run: prefetch, freshness, deletion, quarantine, re-warming."""

import asyncio
import json

import pytest

from inference.admission import Admission
from inference.problems import AdapterError
from inference.runtime import Runtime
from inference.settings import ReplicaSettings
from tests.inference.adapters import lora
from tests.inference.conftest import ServiceAndStorage, make_runtime
from tests.inference.stand_in import CHAT, KEY, Call, Client, StandIn, until

pytestmark = pytest.mark.usefixtures("quick")


async def test_files_are_fetched_while_the_request_waits(
    call: Call, service: ServiceAndStorage, vllm: StandIn, runtime: Runtime
) -> None:
    vllm.gate.clear()
    busy = [call(service.publish(lora(seed)), tenant=f"tenant-{seed}") for seed in range(2)]
    for client in busy:
        await client.first_byte()
    waiting = service.publish(lora(9))
    client = call(waiting, tenant="tenant-9")
    await until(lambda: runtime.residency.tier(waiting) == "disk")
    assert runtime.status().waiting == 1
    await asyncio.sleep(0.05)
    vllm.gate.set()
    assert (await client.done()).headers["x-adapter-cache"] == "store"
    assert float(client.headers["x-weft-wait-ms"]) >= 40
    assert float(busy[0].headers["x-weft-wait-ms"]) < 40


async def test_more_adapters_wait_than_the_disk_holds(
    service: ServiceAndStorage, vllm: StandIn, small: ReplicaSettings
) -> None:
    """Two slots and room for three on disk; nobody is refused for want of room, nothing is fetched over and over."""
    adapters = [lora(seed) for seed in range(10)]
    budget = 3 * sum(file.size for file in adapters[0].manifest.files) + 500
    runtime = make_runtime(small.model_copy(update={"cache_bytes": budget, "hold_seconds": 20.0}), vllm)
    admission = Admission(vllm)
    bodies = [json.dumps({"model": service.publish(adapter)}).encode() for adapter in adapters]
    clients = [
        Client(admission, runtime, CHAT, body, KEY, "POST", f"t{number % 3}") for number, body in enumerate(bodies)
    ]
    assert {(await client.done()).status for client in clients} == {200}
    assert max(service.downloaded.values()) <= 2 * len(adapters[0].files)
    await runtime.close()
    assert vllm.deaths == []


async def test_deleted_while_answering(call: Call, service: ServiceAndStorage, vllm: StandIn, runtime: Runtime) -> None:
    vllm.gate.clear()
    adapter = service.publish(lora(1))
    answering = call(adapter)
    await answering.first_byte()
    folder = vllm.folders[adapter]
    del service.adapters[adapter]
    eviction = asyncio.create_task(runtime.residency.evict(adapter, seconds=5))
    await asyncio.sleep(0.02)
    late = call(adapter)
    vllm.gate.set()
    assert (await answering.done()).body.endswith(b"data: [DONE]\n\n")
    assert (await late.done()).error["code"] == "adapter_not_found"
    await eviction
    assert not folder.exists()
    assert (await call(adapter).done()).status == 404


async def test_uploaded_later_answers_within_a_second(call: Call, service: ServiceAndStorage) -> None:
    adapter = lora(1)
    assert (await call(adapter.id).done()).status == 404
    service.publish(adapter)
    loop = asyncio.get_running_loop()
    uploaded = loop.time()
    while (await call(adapter.id).done()).status != 200:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    assert loop.time() - uploaded < 1.0


async def test_quarantined_adapter_gets_no_further_request(
    call: Call, service: ServiceAndStorage, vllm: StandIn, runtime: Runtime
) -> None:
    bad, good = service.publish(lora(1)), service.publish(lora(2))
    for adapter in (bad, good):
        await call(adapter).done()
    vllm.gate.clear()
    running = call(bad)
    await running.first_byte()
    runtime.corrupted(None)
    runtime.corrupted(bad)
    refused = await call(bad).done()
    assert (refused.status, refused.error["code"]) == (422, "adapter_invalid")
    vllm.gate.set()
    assert (await running.done()).status == 200
    assert (await call(good).done()).status == 200


async def test_quarantine_outlives_the_process_and_is_told(
    service: ServiceAndStorage, small: ReplicaSettings, vllm: StandIn
) -> None:
    bad, spared = service.publish(lora(1)), service.publish(lora(2))
    before = make_runtime(small, vllm)
    vllm.base = {1: float("nan")}
    before.corrupted(spared)
    await asyncio.sleep(0.05)
    assert before.status().quarantined == {}, "an engine that computes no numbers for its base says nothing of adapters"
    vllm.base = {1: -0.5}
    before.corrupted(bad)
    await until(lambda: list(before.status().quarantined) == [bad])
    for adapter in (bad, spared):
        with pytest.raises(AdapterError, match="not numbers"):
            await before.residency.ensure(adapter)
    told = before.status().quarantined
    await before.close()

    after = make_runtime(small, vllm)
    assert after.status().quarantined == told
    with pytest.raises(AdapterError, match="not numbers"):
        await after.residency.ensure(bad)
    await after.residency.ensure(spared)
    await after.close()


async def test_request_that_waited_when_its_adapter_came_into_quarantine_is_refused(
    call: Call, service: ServiceAndStorage, vllm: StandIn, runtime: Runtime
) -> None:
    adapter = service.publish(lora(1))
    vllm.slow = {adapter: asyncio.Event()}
    waiting = call(adapter)
    await until(lambda: vllm.asked == [adapter])
    runtime.corrupted(adapter)
    vllm.slow[adapter].set()
    assert (await waiting.done()).error["code"] == "adapter_invalid"
    assert vllm.bodies == []


async def test_hottest_adapters_are_loaded_again_after_a_start(
    service: ServiceAndStorage, small: ReplicaSettings
) -> None:
    adapters = [service.publish(lora(seed)) for seed in range(3)]
    before = make_runtime(small, StandIn())
    for uses, adapter in enumerate(adapters):
        for _ in range(uses + 1):
            await before.residency.ensure(adapter)
    await before.close()
    service.service_status = 503
    vllm = StandIn()
    after = make_runtime(small, vllm)
    await after.start()
    await until(lambda: len(vllm.folders) == 2)
    assert set(vllm.folders) == {adapters[1], adapters[2]}
    assert after.residency.tier(adapters[2]) == "gpu"
    await after.close()
