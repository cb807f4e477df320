"""The adapter cache against a real HTTP server: what arrives is whole and proved, what fails leaves nothing."""

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from inference import folders, verdicts
from inference.cache import ATTEMPTS, AdapterCache
from inference.gate import AdapterGate
from inference.metrics import Metrics
from inference.problems import AdapterError
from inference.settings import ReplicaSettings
from inference.source import AdapterSources
from service.contracts.manifest import ADAPTER_WEIGHTS, MANIFEST
from tests.inference.adapters import Adapter, lora, lora_tensors
from tests.inference.conftest import ServiceAndStorage


@pytest.fixture
async def sources(settings: ReplicaSettings) -> AsyncIterator[AdapterSources]:
    sources = AdapterSources(settings)
    yield sources
    await sources.close()


@pytest.fixture
def cache(sources: AdapterSources, gate: AdapterGate, tmp_path: Path) -> AdapterCache:
    return make(sources, gate, tmp_path)


def make(sources: AdapterSources, gate: AdapterGate, root: Path, **changes: Any) -> AdapterCache:
    return AdapterCache(
        root, sources, gate, Metrics(CollectorRegistry()), **{"budget": 1 << 20, "fetch_seconds": 5.0} | changes
    )


def size(adapter: Adapter) -> int:
    return sum(file.size for file in adapter.manifest.files)


async def problem(cache: AdapterCache, adapter: str) -> str:
    with pytest.raises(AdapterError) as caught:
        await cache.materialise(adapter)
    return caught.value.problem


def assert_clean(root: Path, *adapters: str) -> None:
    assert sorted(entry.name for entry in root.iterdir()) == sorted(adapters)


async def test_fetches_whole_folder(service: ServiceAndStorage, cache: AdapterCache, tmp_path: Path) -> None:
    adapter = lora(1)
    folder = await cache.materialise(service.publish(adapter))
    assert folder == tmp_path / adapter.id
    assert folder.is_absolute()
    assert {entry.name for entry in folder.iterdir()} == {*adapter.files, MANIFEST}
    assert all((folder / name).read_bytes() == content for name, content in adapter.files.items())
    assert cache.disk_bytes == size(adapter)
    assert_clean(tmp_path, adapter.id)


async def test_hundred_requesters_cause_one_fetch(service: ServiceAndStorage, cache: AdapterCache) -> None:
    adapter = service.publish(lora(1))
    folders = await asyncio.gather(*(cache.materialise(adapter) for _ in range(100)))
    assert len(set(folders)) == 1
    assert service.described[adapter] == 1
    assert service.downloaded[adapter] == 2, "one GET for each of two files"


async def test_departed_requester_does_not_end_the_fetch(service: ServiceAndStorage, cache: AdapterCache) -> None:
    service.slow_seconds = 0.2
    adapter = service.publish(lora(1))
    first = asyncio.create_task(cache.materialise(adapter))
    second = asyncio.create_task(cache.materialise(adapter))
    await asyncio.sleep(0.05)
    first.cancel()
    await second
    assert service.described[adapter] == 1


async def test_two_adapters_at_a_time_all_their_files_at_once(service: ServiceAndStorage, cache: AdapterCache) -> None:
    service.slow_seconds = 0.05
    await asyncio.gather(*(cache.materialise(service.publish(lora(seed))) for seed in range(6)))
    assert service.most_at_once == 2 * len(lora(1).files)


async def test_one_tenants_crowd_does_not_stand_before_anothers_adapter(
    service: ServiceAndStorage, cache: AdapterCache
) -> None:
    service.slow_seconds = 0.05
    crowd = [asyncio.create_task(cache.materialise(service.publish(lora(seed)), "crowd")) for seed in range(20)]
    await asyncio.sleep(0.02)
    await cache.materialise(service.publish(lora(99)), "other")
    assert sum(task.done() for task in crowd) <= 2
    await asyncio.gather(*crowd)


async def test_cached_adapter_needs_no_service(service: ServiceAndStorage, cache: AdapterCache) -> None:
    adapter = service.publish(lora(1))
    await cache.materialise(adapter)
    service.service_status = 503
    await cache.materialise(adapter)


async def test_unknown_adapter_is_remembered_for_seconds(
    service: ServiceAndStorage, cache: AdapterCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = lora(1)
    monkeypatch.setitem(verdicts.SECONDS, "adapter_not_found", 0.2)
    assert await problem(cache, adapter.id) == "adapter_not_found"
    service.publish(adapter)
    assert await problem(cache, adapter.id) == "adapter_not_found"
    assert service.described[adapter.id] == 1
    await asyncio.sleep(0.25)
    await cache.materialise(adapter.id)


async def test_outage_is_not_remembered(service: ServiceAndStorage, cache: AdapterCache, tmp_path: Path) -> None:
    adapter = service.publish(lora(1))
    service.service_status = 500
    assert await problem(cache, adapter) == "adapter_storage_unavailable"
    assert_clean(tmp_path)
    service.service_status = None
    await cache.materialise(adapter)


async def test_service_that_is_not_there(gate: AdapterGate, tmp_path: Path, settings: ReplicaSettings) -> None:
    sources = AdapterSources(settings.model_copy(update={"service_url": "http://127.0.0.1:9"}))
    assert await problem(make(sources, gate, tmp_path), lora(1).id) == "adapter_storage_unavailable"
    await sources.close()


async def test_single_storage_failure_is_retried(service: ServiceAndStorage, cache: AdapterCache) -> None:
    service.storage_failures = 1
    await cache.materialise(service.publish(lora(1)))


async def test_storage_outage(service: ServiceAndStorage, cache: AdapterCache, tmp_path: Path) -> None:
    service.storage_failures = 1000
    assert await problem(cache, service.publish(lora(1))) == "adapter_storage_unavailable"
    assert_clean(tmp_path)


async def test_connection_cut_in_the_middle(service: ServiceAndStorage, cache: AdapterCache, tmp_path: Path) -> None:
    service.cut = True
    assert await problem(cache, service.publish(lora(1))) == "adapter_storage_unavailable"
    assert_clean(tmp_path)


async def test_altered_bytes_never_reach_their_place(
    service: ServiceAndStorage, cache: AdapterCache, tmp_path: Path
) -> None:
    service.damage = lambda content: content[:-1] + bytes([content[-1] ^ 1])
    adapter = service.publish(lora(1))
    assert await problem(cache, adapter) == "adapter_corrupt"
    assert_clean(tmp_path)
    service.damage = None
    loop = asyncio.get_running_loop()
    repaired = loop.time()
    while True:
        try:
            await cache.materialise(adapter)
            break
        except AdapterError:
            await asyncio.sleep(0.02)
    assert loop.time() - repaired < 1.0


async def test_damaged_adapter_is_not_fetched_for_each_request(service: ServiceAndStorage, cache: AdapterCache) -> None:
    service.damage = lambda content: b"x" * len(content)
    adapter = service.publish(lora(1))
    for _ in range(10):
        assert await problem(cache, adapter) == "adapter_corrupt"
    assert service.described[adapter] == ATTEMPTS


async def test_another_adapters_manifest_is_not_believed(service: ServiceAndStorage, cache: AdapterCache) -> None:
    service.adapters[lora(1).id] = lora(2)
    assert await problem(cache, lora(1).id) == "adapter_corrupt"


async def test_fetch_has_an_end(
    service: ServiceAndStorage, sources: AdapterSources, gate: AdapterGate, tmp_path: Path
) -> None:
    service.slow_seconds = 5.0
    cache = make(sources, gate, tmp_path, fetch_seconds=0.2)
    assert await problem(cache, service.publish(lora(1))) == "adapter_storage_unavailable"
    assert_clean(tmp_path)


async def test_hostile_adapter_is_fetched_once(service: ServiceAndStorage, cache: AdapterCache, tmp_path: Path) -> None:
    poison = lora(1, tensors={name: value * float("nan") for name, value in lora_tensors(1).items()})
    for _ in range(3):
        assert await problem(cache, service.publish(poison)) == "adapter_invalid"
    assert service.described[poison.id] == 1
    assert_clean(tmp_path)


async def test_oldest_unpinned_adapter_makes_room(
    service: ServiceAndStorage, sources: AdapterSources, gate: AdapterGate, tmp_path: Path
) -> None:
    first, second, third = (lora(seed) for seed in range(3))
    cache = make(sources, gate, tmp_path, budget=size(first) * 2 + 100)
    for adapter in (first, second):
        await cache.materialise(service.publish(adapter))
    await cache.materialise(first.id)
    await cache.materialise(service.publish(third))
    assert_clean(tmp_path, first.id, third.id)


async def test_pinned_adapters_are_never_deleted(
    service: ServiceAndStorage, sources: AdapterSources, gate: AdapterGate, tmp_path: Path
) -> None:
    first, second = lora(1), lora(2)
    cache = make(sources, gate, tmp_path, budget=size(first) + 100)
    cache.pin(service.publish(first))
    await cache.materialise(first.id)
    assert await problem(cache, service.publish(second)) == "no_capacity"
    assert await cache.delete(first.id) is False
    assert_clean(tmp_path, first.id)
    cache.unpin(first.id)
    await cache.materialise(second.id)
    assert_clean(tmp_path, second.id)


async def test_adapter_larger_than_the_cache(
    service: ServiceAndStorage, sources: AdapterSources, gate: AdapterGate, tmp_path: Path
) -> None:
    assert await problem(make(sources, gate, tmp_path, budget=100), service.publish(lora(1))) == "adapter_invalid"


async def test_full_disk(
    service: ServiceAndStorage, cache: AdapterCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    adapter = service.publish(lora(1))
    with monkeypatch.context() as patch:
        patch.setattr(folders, "publish", full)
        assert await problem(cache, adapter) == "no_capacity"
        assert_clean(tmp_path)
    await cache.materialise(adapter)


async def test_restart_keeps_what_is_whole(
    service: ServiceAndStorage, sources: AdapterSources, gate: AdapterGate, tmp_path: Path
) -> None:
    sound, damaged = lora(1), lora(2)
    before = make(sources, gate, tmp_path)
    for adapter in (sound, damaged):
        await before.materialise(service.publish(adapter))
    weights = tmp_path / damaged.id / ADAPTER_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    (tmp_path / ".tmp-left").mkdir()
    (tmp_path / ".tmp-left" / "half").write_bytes(b"x")
    service.downloaded.clear()

    after = make(sources, gate, tmp_path)
    assert after.disk_bytes == size(sound) + size(damaged)
    for adapter in (sound, damaged):
        await after.materialise(adapter.id)
    assert service.downloaded == {damaged.id: 2}
    assert weights.read_bytes() == damaged.files[ADAPTER_WEIGHTS]
    assert_clean(tmp_path, sound.id, damaged.id)


async def test_damage_while_running_is_seen(service: ServiceAndStorage, cache: AdapterCache) -> None:
    adapter = service.publish(lora(1))
    folder = await cache.materialise(adapter)
    (folder / ADAPTER_WEIGHTS).write_bytes(b"short")
    await cache.materialise(adapter)
    assert (folder / ADAPTER_WEIGHTS).read_bytes() == lora(1).files[ADAPTER_WEIGHTS]


async def test_close_ends_fetches_and_clears_their_folders(
    service: ServiceAndStorage, cache: AdapterCache, tmp_path: Path
) -> None:
    service.slow_seconds = 5.0
    waiting = asyncio.create_task(cache.materialise(service.publish(lora(1))))
    while not service.downloaded:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await cache.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert_clean(tmp_path)
