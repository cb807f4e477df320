"""Adapters through admission: loaded once, bounded, counted until the answer ends, and evicted only when unused."""

import asyncio
import json
from collections.abc import Callable

import pytest

from inference import residency
from inference.admission import Admission
from inference.residency import Visit
from inference.runtime import Runtime
from inference.settings import ReplicaSettings
from tests.inference.adapters import lora
from tests.inference.conftest import ServiceAndStorage, make_runtime
from tests.inference.stand_in import CHAT, KEY, Call, Client, StandIn, until

pytestmark = pytest.mark.usefixtures("quick")


async def test_tier_tells_where_the_adapter_was(call: Call, service: ServiceAndStorage, runtime: Runtime) -> None:
    adapter, *others = (service.publish(lora(seed)) for seed in range(3))
    assert (await call(adapter).done()).headers["x-adapter-cache"] == "store"
    assert (await call(adapter).done()).headers["x-adapter-cache"] == "gpu"
    for other in others:
        await call(other).done()
    assert (await call(adapter).done()).headers["x-adapter-cache"] == "cpu"
    for seed in range(10, 13):
        await call(service.publish(lora(seed))).done()
    assert runtime.status().adapters[others[0]] == "disk", "four fit vLLM; the least recently used went"
    assert (await call(others[0]).done()).headers["x-adapter-cache"] == "disk"


async def test_concurrent_requests_load_once(call: Call, service: ServiceAndStorage, vllm: StandIn) -> None:
    adapter = service.publish(lora(1))
    clients = await asyncio.gather(*(call(adapter).done() for _ in range(20)))
    assert {client.status for client in clients} == {200}
    assert vllm.loads == {adapter: 1}
    assert service.described[adapter] == 1


async def test_answer_streams_while_vllm_still_works(call: Call, service: ServiceAndStorage, vllm: StandIn) -> None:
    vllm.gate.clear()
    client = call(service.publish(lora(1)))
    await client.first_byte()
    assert client.body == b"data: 1\n\n"
    assert not client.task.done()
    vllm.gate.set()
    assert (await client.done()).body == b"data: 1\n\ndata: [DONE]\n\n"


async def test_departure_reaches_vllm_and_frees_the_slot(
    call: Call, service: ServiceAndStorage, vllm: StandIn, runtime: Runtime
) -> None:
    vllm.gate.clear()
    client = call(service.publish(lora(1)))
    await client.first_byte()
    client.leave()
    await client.done()
    assert vllm.aborted == 1
    await until(lambda: not runtime.status().in_flight)


async def test_departed_client_pays_for_what_the_engine_did(call: Call, vllm: StandIn, runtime: Runtime) -> None:
    """One that always gives up early gets no more turns for it than others."""
    settled: list[float | None] = []
    leave = runtime.residency.leave

    def noted(visit: Visit, *, used: float | None = None, aborted: bool) -> None:
        settled.append(used)
        leave(visit, used=used, aborted=aborted)

    runtime.residency.leave = noted  # type: ignore[method-assign]
    vllm.gate.clear()
    client = call()
    await client.first_byte()
    client.leave()
    await client.done()
    assert settled == [4.0]


async def test_departure_while_waiting_leaves_nothing(
    call: Call, service: ServiceAndStorage, vllm: StandIn, runtime: Runtime
) -> None:
    service.slow_seconds = 0.3
    adapter = service.publish(lora(1))
    client = call(adapter)
    await until(lambda: bool(service.downloaded))
    client.leave()
    await client.done()
    assert client.sent == []
    assert vllm.bodies == []
    assert runtime.status().in_flight == {}
    await until(lambda: runtime.residency.tier(adapter) == "disk")
    assert vllm.loads == {}


async def test_at_most_max_loras_distinct_adapters_run(
    call: Call, service: ServiceAndStorage, vllm: StandIn, runtime: Runtime
) -> None:
    adapters = [service.publish(lora(seed)) for seed in range(6)]
    vllm.gate.clear()
    clients = [call(adapter, tenant=f"tenant-{number % 2}") for number, adapter in enumerate(adapters * 5)]
    await until(lambda: sum(service.downloaded.values()) == 12 and len(runtime.status().in_flight) == 2)
    vllm.gate.set()
    assert {(await client.done()).status for client in clients} == {200}
    assert vllm.most_distinct == 2
    assert runtime.status().in_flight == {}


async def test_slots_that_stay_busy(service: ServiceAndStorage, vllm: StandIn, small: ReplicaSettings) -> None:
    short = small.model_copy(update={"hold_seconds": 0.3, "max_loras": 1})
    runtime = make_runtime(short, vllm)
    admission = Admission(vllm)
    vllm.gate.clear()

    def ask(seed: int) -> Client:
        body = json.dumps({"model": service.publish(lora(seed))}).encode()
        return Client(admission, runtime, CHAT, body, KEY, "POST")

    first = ask(1)
    await first.first_byte()
    second = await ask(2).done()
    assert (second.status, second.error["code"]) == (503, "no_capacity")
    assert int(second.headers["retry-after"]) >= 1
    vllm.gate.set()
    await first.done()
    await runtime.close()


async def test_cold_adapter_is_held_only_so_long(
    service: ServiceAndStorage, vllm: StandIn, small: ReplicaSettings
) -> None:
    runtime = make_runtime(small.model_copy(update={"hold_seconds": 0.2}), vllm)
    service.slow_seconds = 0.5
    adapter = service.publish(lora(1))
    body = json.dumps({"model": adapter}).encode()
    client = await Client(Admission(vllm), runtime, CHAT, body, KEY, "POST").done()
    assert (client.status, client.error["code"]) == (503, "adapter_loading")
    assert "retry-after" in client.headers
    await until(lambda: runtime.residency.tier(adapter) == "disk")
    assert (await Client(Admission(vllm), runtime, CHAT, body, KEY, "POST").done()).status == 200
    await runtime.close()


@pytest.mark.parametrize(
    ("arrange", "status", "code"),
    [
        (lambda service: setattr(service, "service_status", 404), 404, "adapter_not_found"),
        (lambda service: setattr(service, "service_status", 500), 503, "adapter_storage_unavailable"),
        (lambda service: setattr(service, "damage", lambda content: b"x" * len(content)), 503, "adapter_corrupt"),
    ],
)
async def test_problems_reach_the_client_in_openais_envelope(
    call: Call, service: ServiceAndStorage, arrange: Callable[[ServiceAndStorage], None], status: int, code: str
) -> None:
    adapter = service.publish(lora(1))
    arrange(service)
    client = await call(adapter).done()
    assert (client.status, client.error["code"], client.error["param"]) == (status, code, "model")
    assert ("retry-after" in client.headers) == (status == 503)


async def test_evict_waits_for_requests_then_deletes(
    call: Call, service: ServiceAndStorage, vllm: StandIn, runtime: Runtime
) -> None:
    vllm.gate.clear()
    adapter = service.publish(lora(1))
    client = call(adapter)
    await client.first_byte()
    folder = vllm.folders[adapter]
    eviction = asyncio.create_task(runtime.residency.evict(adapter, seconds=5))
    newcomer = call(adapter)
    await asyncio.sleep(0.05)
    assert folder.exists()
    assert len(vllm.bodies) == 1, "no request is admitted to an adapter that is leaving"
    vllm.gate.set()
    await asyncio.gather(client.done(), eviction, newcomer.done())
    assert newcomer.headers["x-adapter-cache"] == "store", "gone from disk, then fetched anew"
    assert vllm.loads[adapter] == 2


async def test_evict_gives_up_on_a_long_request(
    call: Call, service: ServiceAndStorage, vllm: StandIn, runtime: Runtime
) -> None:
    vllm.gate.clear()
    adapter = service.publish(lora(1))
    client = call(adapter)
    await client.first_byte()
    with pytest.raises(residency.AdapterError, match="still use"):
        await runtime.residency.evict(adapter, seconds=0.1)
    vllm.gate.set()
    await client.done()
    assert (await call(adapter).done()).headers["x-adapter-cache"] == "gpu"


async def test_full_disk_cache_is_relieved_by_idle_adapters(
    service: ServiceAndStorage, vllm: StandIn, small: ReplicaSettings
) -> None:
    first, second = lora(1), lora(2)
    budget = sum(file.size for file in first.manifest.files) + 100
    runtime = make_runtime(small.model_copy(update={"cache_bytes": budget}), vllm)
    assert await runtime.residency.ensure(service.publish(first)) == "store"
    assert await runtime.residency.ensure(service.publish(second)) == "store"
    assert runtime.status().adapters == {second.id: "gpu"}
    assert set(vllm.folders) == {second.id}
    await runtime.close()


async def test_churn_never_serves_without_files(
    call: Call, service: ServiceAndStorage, vllm: StandIn, runtime: Runtime
) -> None:
    """Requests, departures and evictions of six adapters at once over a registry of four and two slots."""
    adapters = [service.publish(lora(seed)) for seed in range(6)]

    async def ask(number: int) -> None:
        client = call(adapters[number % 6])
        if number % 5 == 0:
            await asyncio.sleep(0.003)
            client.leave()
        await client.done()
        assert not client.sent or client.status == 200, client.error

    async def evict(number: int) -> None:
        await asyncio.sleep(0.004 * number)
        await runtime.residency.evict(adapters[number % 6], seconds=5)

    async with asyncio.timeout(30):
        await asyncio.gather(*(ask(number) for number in range(40)), *(evict(number) for number in range(12)))
    await until(lambda: not runtime.status().in_flight)
    assert vllm.most_distinct <= 2
    assert set(vllm.folders) <= set(adapters)


async def test_resident_adapter_costs_little(call: Call, service: ServiceAndStorage, runtime: Runtime) -> None:
    """Budget 1 ms; measured against the base, which takes the same way without an adapter."""
    adapter = service.publish(lora(1))
    await call(adapter).done()

    async def seconds(model: str) -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(200):
            await call(model).task
        return (loop.time() - began) / 200

    assert await seconds(adapter) - await seconds("base") < 1e-3
