"""Clients that take their answers more slowly than the engine makes them: they hold what they read, and no slot."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from inference.admission import Admission
from inference.runtime import Runtime
from inference.settings import ReplicaSettings
from tests.inference.adapters import lora
from tests.inference.conftest import ServiceAndStorage, make_runtime
from tests.inference.stand_in import CHAT, KEY, Client, StandIn, until

pytestmark = pytest.mark.usefixtures("quick")

SLOTS, TENANTS = 8, 12
Ask = Callable[[int, str], Client]


@pytest.fixture
async def wide(small: ReplicaSettings, vllm: StandIn) -> AsyncIterator[Runtime]:
    changes = {"max_loras": SLOTS, "max_cpu_loras": 2 * SLOTS, "tenant_in_flight": TENANTS}
    runtime = make_runtime(small.model_copy(update=changes), vllm)
    yield runtime
    await runtime.close()
    assert vllm.deaths == []


@pytest.fixture
def ask(wide: Runtime, vllm: StandIn, service: ServiceAndStorage) -> Ask:
    admission = Admission(vllm)

    def ask(seed: int, tenant: str) -> Client:
        body = json.dumps({"model": service.publish(lora(seed)), "messages": []}).encode()
        return Client(admission, wide, CHAT, body, KEY, "POST", tenant)

    return ask


async def tricklers(ask: Ask, vllm: StandIn) -> list[Client]:
    """One tenant's, of as many adapters as it can have slots. Their clients read nothing for now."""
    vllm.gate.clear()
    clients = [ask(seed, "slow") for seed in range(SLOTS - 1)]
    for client in clients:
        client.reads.clear()
    await until(lambda: len(vllm.bodies) == SLOTS - 1)
    return clients


async def test_newcomers_get_the_slots_of_answers_that_are_only_being_read(
    ask: Ask, vllm: StandIn, wide: Runtime
) -> None:
    slow = await tricklers(ask, vllm)
    newcomers = [ask(100, "first"), ask(101, "second")]
    await until(lambda: len(vllm.bodies) == SLOTS)
    assert wide.status().waiting == 1, "the engine works for all the others"
    vllm.gate.set()
    for client in newcomers:
        assert (await client.done()).status == 200
    assert not any(client.task.done() for client in slow)
    assert sum(wide.status().in_flight.values()) == len(slow)
    for client in slow:
        client.reads.set()
        assert (await client.done()).body.endswith(b"[DONE]\n\n")
    await until(lambda: not wide.status().in_flight)


async def test_adapter_may_go_while_its_last_answer_is_being_read(
    ask: Ask, vllm: StandIn, wide: Runtime, service: ServiceAndStorage
) -> None:
    slow = await tricklers(ask, vllm)
    adapter = service.publish(lora(0))
    folder = vllm.folders[adapter]
    vllm.gate.set()
    await wide.residency.evict(adapter, seconds=5)
    assert not folder.exists()
    for client in slow:
        client.reads.set()
        assert (await client.done()).body.endswith(b"[DONE]\n\n")


async def test_answers_that_are_being_read_are_bounded_by_tenant(ask: Ask, vllm: StandIn, wide: Runtime) -> None:
    slow = [ask(0, "slow") for _ in range(TENANTS + 1)]
    for client in slow:
        client.reads.clear()
    await until(lambda: len(vllm.bodies) == TENANTS)
    assert (await ask(1, "other").done()).status == 200
    assert wide.status().waiting == 1
    for client in slow:
        client.leave()
        client.reads.set()
    await asyncio.gather(*(client.done() for client in slow))
    await until(lambda: not wide.status().in_flight)
