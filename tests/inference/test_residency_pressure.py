"""Which adapters vLLM knows, under more demand than it can hold: nobody is refused, nobody finds its adapter gone."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from inference.cache import AdapterCache
from inference.gate import AdapterGate
from inference.hottest import Hottest
from inference.metrics import Metrics
from inference.quarantine import Quarantine
from inference.registry import Registry
from inference.residency import Ask, Residency
from inference.settings import ReplicaSettings
from inference.source import AdapterSources
from inference.turns import Limits, Turns
from tests.inference.adapters import lora
from tests.inference.conftest import ServiceAndStorage

SLOTS, KNOWN = 2, 3


class Watched:
    """Stands in for vLLM's registry; loading and unloading take a while and must never meet a request at work."""

    def __init__(self) -> None:
        self.loaded: dict[str, Path] = {}
        self.working: list[str] = []

    async def load(self, adapter: str, folder: Path) -> None:
        await asyncio.sleep(0.001)
        assert len(self.loaded) < KNOWN
        self.loaded[adapter] = folder

    async def unload(self, adapter: str) -> None:
        assert adapter not in self.working
        await asyncio.sleep(0.001)
        assert adapter not in self.working
        del self.loaded[adapter]

    async def predict(self, adapter: str | None, prompt: Sequence[int]) -> Mapping[int, float]:
        raise AssertionError("these adapters have no canary")


@pytest.mark.parametrize("seed", range(5))
async def test_more_waiting_adapters_than_vllm_can_know(
    service: ServiceAndStorage, settings: ReplicaSettings, gate: AdapterGate, tmp_path: Path, seed: int
) -> None:
    sources, engine, rng = AdapterSources(settings), Watched(), random.Random(seed)
    metrics = Metrics(CollectorRegistry())
    cache = AdapterCache(tmp_path / "cache", sources, gate, metrics, budget=1 << 20, fetch_seconds=5.0)
    # Nobody overtakes: each turn goes to another adapter than the last, while all of them have requests waiting.
    turns = Turns(Limits(SLOTS, stint=0.0))
    registry = Registry(engine, cache, metrics, most=KNOWN)
    hottest, quarantine = Hottest(tmp_path / "hot"), Quarantine(tmp_path / "quarantine")
    residency = Residency(registry, cache, turns, metrics, hottest, quarantine, hold_seconds=30.0)
    adapters = [service.publish(lora(number)) for number in range(8)]
    for adapter in adapters:
        await cache.materialise(adapter)

    async def request(adapter: str) -> None:
        ask = Ask(f"tenant-{adapter[0]}", adapter)
        visit = residency.try_enter(ask) or await residency.enter(ask)
        engine.working.append(adapter)
        assert engine.loaded[adapter].exists()
        await asyncio.sleep(rng.random() / 200)
        assert adapter in engine.loaded
        engine.working.remove(adapter)
        residency.leave(visit, aborted=False)

    await asyncio.gather(*(request(adapter) for adapter in adapters * 6))
    assert (turns.running, turns.waiting) == ({}, 0)
    await sources.close()
