"""Evictions of one adapter at once: none of them takes it from under a request that came after another had ended."""

import asyncio
import json

import pytest

from inference.admission import Admission
from inference.settings import ReplicaSettings
from tests.inference.adapters import lora
from tests.inference.conftest import ServiceAndStorage, make_runtime
from tests.inference.stand_in import CHAT, KEY, Client, StandIn, until

pytestmark = pytest.mark.usefixtures("quick")


async def test_second_eviction_waits_while_the_adapter_is_asked_for_again(
    service: ServiceAndStorage, vllm: StandIn, small: ReplicaSettings
) -> None:
    """Both see it unused and wait for vLLM's registry, where another tenant's load comes between them."""
    runtime = make_runtime(small.model_copy(update={"max_loras": 4, "max_cpu_loras": 8}), vllm)
    adapter, first, between = (service.publish(lora(seed)) for seed in range(3))
    await runtime.residency.ensure(adapter, "owner")
    vllm.slow = {first: asyncio.Event(), between: asyncio.Event()}
    loads = [asyncio.create_task(runtime.residency.ensure(first, "first"))]
    await until(lambda: first in vllm.asked)
    evictions = [asyncio.create_task(runtime.residency.evict(adapter, seconds=5)) for _ in range(2)]
    await asyncio.sleep(0)
    loads.append(asyncio.create_task(runtime.residency.ensure(between, "between")))
    await until(lambda: runtime.residency.tier(between) == "disk")

    vllm.slow[first].set()
    await until(lambda: between in vllm.asked)
    await asyncio.wait(evictions, return_when=asyncio.FIRST_COMPLETED)
    vllm.gate.clear()
    body = json.dumps({"model": adapter}).encode()
    newcomer = Client(Admission(vllm), runtime, CHAT, body, KEY, "POST", "newcomer")
    await asyncio.sleep(0.1)
    vllm.slow[between].set()
    await newcomer.first_byte()
    await asyncio.gather(*evictions, *loads)
    vllm.gate.set()
    assert (await newcomer.done()).status == 200
    await runtime.close()
    assert vllm.deaths == []
