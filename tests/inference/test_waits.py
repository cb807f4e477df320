"""What a request is said to have waited: all that it did for others' sake, and nothing of its own adapter's load."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from statistics import median

import pytest
from prometheus_client import CollectorRegistry

from inference.admission import Admission
from inference.runtime import Runtime
from inference.settings import ReplicaSettings
from inference.waits import LoadClock, Wait
from tests.inference.adapters import lora
from tests.inference.conftest import ServiceAndStorage
from tests.inference.stand_in import CHAT, KEY, Client, StandIn, until

A = "a" * 64
STEP = 0.05
Ask = Callable[[str, str], Client]


async def test_only_what_the_adapters_own_load_takes_is_left_out() -> None:
    clock = LoadClock()
    wait = Wait(clock)
    await asyncio.sleep(STEP)
    with wait.loading(A):
        await asyncio.sleep(STEP)
        with clock.loading(A), clock.loading("b"):
            await asyncio.sleep(10 * STEP)
        await asyncio.sleep(STEP)
    with clock.loading(A):
        await asyncio.sleep(STEP)
    assert 4 * STEP <= wait.seconds < 6 * STEP


async def test_load_that_began_before_counts_from_when_it_is_needed() -> None:
    clock = LoadClock()
    with clock.loading(A):
        await asyncio.sleep(STEP)
        wait = Wait(clock)
        with wait.loading(A):
            await asyncio.sleep(STEP)
        later = Wait(clock)
        with later.loading(A), clock.loading(A):
            await asyncio.sleep(STEP)
        assert later.seconds < STEP / 2
        assert STEP <= wait.seconds < 2 * STEP


@pytest.mark.usefixtures("quick")
class TestOfARequest:
    @pytest.fixture
    def page(self) -> CollectorRegistry:
        return CollectorRegistry()

    @pytest.fixture
    async def wide(self, small: ReplicaSettings, vllm: StandIn, page: CollectorRegistry) -> AsyncIterator[Runtime]:
        changes = {"max_loras": 8, "max_cpu_loras": 16, "queue_limit": 512}
        runtime = Runtime(small.model_copy(update=changes), vllm, page)
        yield runtime
        await runtime.close()
        assert vllm.deaths == []

    @pytest.fixture
    def ask(self, wide: Runtime, vllm: StandIn) -> Ask:
        admission = Admission(vllm)

        def ask(adapter: str, tenant: str) -> Client:
            body = json.dumps({"model": adapter, "messages": []}).encode()
            return Client(admission, wide, CHAT, body, KEY, "POST", tenant)

        return ask

    async def test_fetch_and_load_are_no_wait(self, ask: Ask, service: ServiceAndStorage, vllm: StandIn) -> None:
        service.slow_seconds = vllm.loads_in = 0.2
        client = await ask(service.publish(lora(1)), "t").done()
        assert waited(client) < 50

    async def test_anothers_load_in_vllms_registry_is(
        self, ask: Ask, service: ServiceAndStorage, vllm: StandIn
    ) -> None:
        first = service.publish(lora(1))
        vllm.slow = {first: asyncio.Event()}
        other = ask(first, "other")
        await until(lambda: vllm.asked == [first])
        client = ask(service.publish(lora(2)), "t")
        await asyncio.sleep(0.2)
        vllm.slow[first].set()
        assert waited(await client.done()) >= 100
        assert waited(await other.done()) < 50

    async def test_who_comes_beside_a_flood_of_cold_adapters_waits_for_one_load(
        self, ask: Ask, service: ServiceAndStorage, vllm: StandIn
    ) -> None:
        vllm.loads_in = service.slow_seconds = 0.01
        flood = [ask(service.publish(lora(seed)), "flood") for seed in range(60)]
        await until(lambda: len(vllm.asked) > 8)
        waits = [waited(await ask(service.publish(lora(100 + number)), "lone").done()) for number in range(12)]
        assert any(not client.task.done() for client in flood)
        assert median(waits) <= 50
        assert {(await client.done()).status for client in flood} == {200}

    async def test_wait_that_came_to_nothing_is_measured_too(
        self, wide: Runtime, ask: Ask, service: ServiceAndStorage, vllm: StandIn, page: CollectorRegistry
    ) -> None:
        adapter = service.publish(lora(1))
        vllm.slow = {adapter: asyncio.Event()}
        leaving = ask(adapter, "t")
        await until(lambda: vllm.asked == [adapter])
        leaving.leave()
        await leaving.done()
        assert page.get_sample_value("weft_queue_wait_seconds_count") == 1
        vllm.slow[adapter].set()


def waited(client: Client) -> float:
    assert client.status == 200, client.error
    return float(client.headers["x-weft-wait-ms"])
