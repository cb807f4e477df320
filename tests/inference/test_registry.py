"""The names that vLLM knows, changed by several at once: what one began, another one's end does not undo."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from inference.cache import AdapterCache
from inference.canary import Unlike
from inference.gate import AdapterGate
from inference.metrics import Metrics
from inference.registry import Registry
from inference.settings import ReplicaSettings
from inference.source import AdapterSources
from tests.inference.adapters import lora
from tests.inference.conftest import ServiceAndStorage
from tests.inference.stand_in import until
from tests.inference.test_canary import OTHER, SAME, with_canary


class Answering:
    """An engine whose canaries are answered when the test says so, with what it says."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[Mapping[int, float]]] = []
        self.unloads = asyncio.Event()
        self.unloads.set()

    async def load(self, adapter: str, folder: Path) -> None:
        return

    async def unload(self, adapter: str) -> None:
        await self.unloads.wait()

    async def predict(self, adapter: str | None, prompt: Sequence[int]) -> Mapping[int, float]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]


@pytest.fixture
async def cache(
    settings: ReplicaSettings, gate: AdapterGate, tmp_path: Path, metrics: Metrics
) -> AsyncIterator[AdapterCache]:
    sources = AdapterSources(settings)
    yield AdapterCache(tmp_path / "cache", sources, gate, metrics, budget=1 << 20, fetch_seconds=5.0)
    await sources.close()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


async def test_nothing_is_used_unproved_while_another_makes_room_for_it(
    service: ServiceAndStorage, cache: AdapterCache, metrics: Metrics
) -> None:
    engine = Answering()
    registry = Registry(engine, cache, metrics, most=1)
    old, new = service.publish(lora(2)), service.publish(with_canary(1))
    await registry.load(old, await cache.materialise(old), "one", list)
    engine.unloads.clear()
    loading = asyncio.create_task(registry.load(new, await cache.materialise(new), "other", lambda: [old]))
    await until(lambda: len(engine.asked) == 1)
    assert not registry.usable(old)
    assert not registry.usable(new)
    engine.unloads.set()
    engine.asked[0].set_result(SAME)
    await loading
    assert registry.usable(new)
    assert old not in registry


async def test_failed_proof_leaves_the_next_load_alone(
    service: ServiceAndStorage, cache: AdapterCache, metrics: Metrics
) -> None:
    engine = Answering()
    registry = Registry(engine, cache, metrics, most=4)
    adapter = service.publish(with_canary(1))
    folder = await cache.materialise(adapter)

    first = asyncio.create_task(registry.load(adapter, folder, "first", list))
    await until(lambda: len(engine.asked) == 1)
    eviction = asyncio.create_task(registry.unload(adapter, lambda: False))
    await asyncio.sleep(0)
    second = asyncio.create_task(registry.load(adapter, folder, "second", list))
    await asyncio.sleep(0)
    engine.asked[0].set_result(OTHER)
    await until(lambda: len(engine.asked) == 2)
    await eviction
    with pytest.raises(Unlike):
        async with asyncio.timeout(5):
            await first
    assert not registry.usable(adapter), "its own proof has not come yet"
    engine.asked[1].set_result(SAME)
    await second
    assert registry.usable(adapter)
