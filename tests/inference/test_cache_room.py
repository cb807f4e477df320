"""Who may displace whom on disk: a prefetch nothing that is waited for, a request in its turn all but the pinned."""

from pathlib import Path

import pytest

from inference.gate import AdapterGate
from inference.problems import AdapterError
from inference.settings import ReplicaSettings
from inference.source import AdapterSources
from tests.inference.adapters import lora
from tests.inference.conftest import ServiceAndStorage
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
