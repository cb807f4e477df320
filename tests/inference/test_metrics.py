"""The page of metrics: what it counts, and that it stays bounded however many tenants there are."""

import json

import pytest
from prometheus_client import CollectorRegistry

from inference.admission import Admission
from inference.runtime import Runtime
from inference.settings import ReplicaSettings
from tests.inference.adapters import lora
from tests.inference.conftest import ServiceAndStorage
from tests.inference.stand_in import CHAT, KEY, Client, StandIn

pytestmark = pytest.mark.usefixtures("quick")


async def test_metrics_page(service: ServiceAndStorage, small: ReplicaSettings, vllm: StandIn) -> None:
    registry = CollectorRegistry()
    runtime = Runtime(small.model_copy(update={"restarts": 3}), vllm, registry)
    admission = Admission(vllm)
    for number in range(120):
        body = json.dumps({"model": "base" if number else service.publish(lora(1))}).encode()
        await Client(admission, runtime, CHAT, body, KEY, "POST", f"tenant-{number}").done()
    page = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in registry.collect()
        for sample in metric.samples
    }
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
