"""The page of metrics: what it counts, and that it stays bounded however many tenants there are."""

import json

import pytest
from prometheus_client import CollectorRegistry

from inference.admission import Admission
from inference.runtime import Runtime
from inference.settings import ReplicaSettings
from tests.inference.adapters import lora
from tests.inference.conftest import ServiceAndStorage
from tests.inference.stand_in import CHAT, KEY, Client, StandIn, until
from tests.inference.test_canary import OTHER, with_canary

pytestmark = pytest.mark.usefixtures("quick")


async def test_metrics_page(service: ServiceAndStorage, small: ReplicaSettings, vllm: StandIn) -> None:
    registry = CollectorRegistry()
    runtime = Runtime(small.model_copy(update={"restarts": 3}), vllm, registry)
    admission = Admission(vllm)
    for number in range(120):
        body = json.dumps({"model": "base" if number else service.publish(lora(1))}).encode()
        await Client(admission, runtime, CHAT, body, KEY, "POST", f"tenant-{number}").done()
    page = read(registry)
    assert page["weft_adapters_resident", "gpu"] == 1
    assert page["weft_adapter_load_seconds_count", "store"] == page["weft_adapter_load_seconds_count", "disk"] == 1
    assert page["weft_adapter_requests_total", "store"] == 1
    assert page["weft_queue_wait_seconds_count",] == 120
    assert page["weft_engine_restarts",] == 3
    assert page["weft_requests_in_flight",] == page["weft_requests_waiting",] == 0
    tenants = {key[1] for key in page if key[0] == "weft_tokens_total"}
    assert len(tenants) == 101
    assert (
        page["weft_tokens_total", "other", "completion"] == 20 * page["weft_tokens_total", "tenant-5", "completion"] > 0
    )
    await runtime.close()


async def test_what_went_wrong_and_what_had_to_go_is_counted(
    service: ServiceAndStorage, small: ReplicaSettings, vllm: StandIn
) -> None:
    registry = CollectorRegistry()
    size = sum(file.size for file in lora(1).manifest.files)
    tight = small.model_copy(update={"max_cpu_loras": 2, "cache_bytes": 3 * size + 100, "tenant_queue_limit": 1})
    runtime = Runtime(tight, vllm, registry)
    admission = Admission(vllm)

    def ask(model: str) -> Client:
        return Client(admission, runtime, CHAT, json.dumps({"model": model}).encode(), KEY, "POST")

    for seed in range(5):
        assert (await ask(service.publish(lora(seed))).done()).status == 200
    unlike = service.publish(with_canary(6))
    vllm.predicts = OTHER
    assert (await ask(unlike).done()).status == 503
    assert (await ask(lora(9).id).done()).status == 404
    assert (await ask("unknown").done()).status == 404
    service.service_status = 500
    assert (await ask(lora(8).id).done()).status == 503
    service.service_status, service.slow_seconds = None, 0.3
    waiting = ask(service.publish(lora(7)))
    await until(lambda: runtime.status().waiting == 1)
    assert (await ask(unlike).done()).error["code"] == "no_capacity"
    await waiting.done()

    page = read(registry)
    assert page["weft_adapter_evictions_total", "engine"] == 4, "of six loaded two are known"
    assert page["weft_adapter_evictions_total", "disk"] == 4, "of seven fetched there is room for three"
    assert page["weft_adapter_load_failures_total", "disk", "adapter_corrupt"] == 1
    assert page["weft_adapter_load_failures_total", "store", "adapter_not_found"] == 1
    assert page["weft_adapter_load_failures_total", "store", "adapter_storage_unavailable"] == 1
    refusals = {key[1]: value for key, value in page.items() if key[0] == "weft_refusals_total"}
    assert refusals == {
        "adapter_corrupt": 1,
        "adapter_not_found": 1,
        "adapter_storage_unavailable": 1,
        "no_capacity": 1,
    }
    await runtime.close()


def read(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """Samples by name and labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in registry.collect()
        for sample in metric.samples
    }
