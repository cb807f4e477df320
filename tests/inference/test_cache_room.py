"""Who may displace whom on disk: a prefetch nothing that is waited for, a request in its turn all but the pinned."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from inference import folders
from inference.cache import AdapterCache, NoRoom
from inference.gate import AdapterGate
from inference.metrics import Metrics
from inference.problems import AdapterError
from inference.settings import ReplicaSettings
from inference.source import AdapterSources
from tests.inference.adapters import lora
from tests.inference.conftest import ServiceAndStorage
from tests.inference.stand_in import until
from tests.inference.test_cache import assert_clean, make, size


async def test_prefetch_displaces_nothing_that_is_waited_for(
    service: ServiceAndStorage, settings: ReplicaSettings, gate: AdapterGate, tmp_path: Path
) -> None:
    first, second = lora(1), lora(2)
    sources = AdapterSources(settings)
    cache = make(sources, gate, tmp_path, budget=size(first) + 100)
    await cache.materialise(service.publish(first))
    cache.want(first.id)
    with pytest.raises(AdapterError, match="full"):
        await cache.materialise(service.publish(second))
    assert_clean(tmp_path, first.id)
    cache.pin(second.id)
    await cache.materialise(second.id)
    assert_clean(tmp_path, second.id)
    await sources.close()


async def test_turn_waits_for_a_prefetch_that_has_all_the_room(
    service: ServiceAndStorage, settings: ReplicaSettings, gate: AdapterGate, tmp_path: Path
) -> None:
    first, second = lora(1), lora(2)
    sources = AdapterSources(settings)
    cache = make(sources, gate, tmp_path, budget=size(first) + 100)
    service.slow_seconds = 0.1
    prefetch = asyncio.create_task(cache.materialise(service.publish(first)))
    await until(lambda: bool(service.downloaded))
    cache.pin(second.id)
    await cache.materialise(service.publish(second))
    assert prefetch.done()
    assert_clean(tmp_path, second.id)
    await sources.close()


class TestWhileRoomIsMade:
    """Three have to go for the next one; what happens while the first of them is deleted counts for the others."""

    @pytest.fixture
    def registry(self) -> CollectorRegistry:
        return CollectorRegistry()

    @pytest.fixture
    async def cache(
        self,
        service: ServiceAndStorage,
        settings: ReplicaSettings,
        gate: AdapterGate,
        tmp_path: Path,
        registry: CollectorRegistry,
    ) -> AsyncIterator[AdapterCache]:
        sources = AdapterSources(settings)
        budget = 3 * size(lora(1)) + 100
        cache = AdapterCache(tmp_path, sources, gate, Metrics(registry), budget=budget, fetch_seconds=5.0)
        for adapter in (lora(1), lora(2), lora(3)):
            await cache.materialise(service.publish(adapter))
        yield cache
        await sources.close()

    @pytest.fixture
    def meanwhile(self, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
        """Called once each, while a folder is deleted."""
        remove, calls = folders.remove, list[Callable[[], object]]()

        def slow(folder: Path) -> None:
            while calls:
                calls.pop()()
            remove(folder)

        monkeypatch.setattr(folders, "remove", slow)
        return calls

    async def test_what_is_wanted_meanwhile_stays(
        self,
        cache: AdapterCache,
        service: ServiceAndStorage,
        tmp_path: Path,
        meanwhile: list[Callable[[], object]],
    ) -> None:
        meanwhile.append(lambda: cache.want(lora(2).id))
        with pytest.raises(NoRoom):
            await cache.materialise(service.publish(lora(4, rank=12)))
        assert_clean(tmp_path, lora(2).id)

    async def test_what_goes_meanwhile_is_not_counted(
        self,
        cache: AdapterCache,
        service: ServiceAndStorage,
        tmp_path: Path,
        meanwhile: list[Callable[[], object]],
        registry: CollectorRegistry,
    ) -> None:
        loop = asyncio.get_running_loop()
        meanwhile.append(lambda: asyncio.run_coroutine_threadsafe(cache.delete(lora(2).id), loop).result(5))
        await cache.materialise(service.publish(lora(4, rank=12)))
        assert_clean(tmp_path, lora(4, rank=12).id)
        assert registry.get_sample_value("weft_adapter_evictions_total", {"tier": "disk"}) == 2
