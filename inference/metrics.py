"""Weft's own numbers on vLLM's /metrics page: where adapters are, what loads cost, who waits, who uses how much.

vLLM's LoRA gauge is replaced by these (inference.engine removes it). Labels are bounded: adapters are never a label,
and of tenants only the first few have one, since a series that exists must go on existing. A tenant is the word by
which the gateway asks for it, another one for its batches: the page needs no key, so it names nobody. Tokens by project
are the service's to tell. That an adapter is on the GPU is concluded, not asked: vLLM keeps the last used ones there.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from inference.problems import AdapterError
from service.contracts.replica import AdapterProblem, ReplicaStatus, Tier

if TYPE_CHECKING:
    from inference.metering import Tokens

TENANT_LABELS = 100
OTHERS = "other"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """One per vLLM server. The registry is vLLM's in a replica."""

    def __init__(self, registry: CollectorRegistry, *, restarts: int = 0) -> None:
        self._registry = registry
        self._tenants: set[str] = set()
        self._loads = Histogram(
            "weft_adapter_load_seconds",
            "Seconds to bring an adapter up: from the store to disk, from disk into vLLM.",
            ["tier"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._finds = Counter(
            "weft_adapter_requests", "Requests by where they found their adapter.", ["tier"], registry=registry
        )
        self._failures = Counter(
            "weft_adapter_load_failures",
            "Loads that failed: from the store to disk, from disk into vLLM.",
            ["tier", "problem"],
            registry=registry,
        )
        self._refusals = Counter("weft_refusals", "Requests refused before vLLM.", ["problem"], registry=registry)
        self._waits = Histogram(
            "weft_queue_wait_seconds",
            "Seconds a request waited before vLLM, its own adapter's load not counted, whether or not it got there.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._evictions = Counter("weft_adapter_evictions", "Adapters that made room.", ["tier"], registry=registry)
        self._tokens = Counter(
            "weft_tokens",
            "Tokens by tenant, as the gateway calls it; those of tenants beyond the first count together.",
            ["tenant", "kind"],
            registry=registry,
        )
        self._quarantined = Counter(
            "weft_adapters_quarantined", "Adapters whose logits were not numbers.", registry=registry
        )
        Gauge("weft_engine_restarts", "Starts of vLLM since its launcher's, less the first.", registry=registry).set(
            restarts
        )

    def watch(self, status: Callable[[], ReplicaStatus]) -> None:
        """Shows at each reading of the page what is resident, in flight and waiting then."""
        self._registry.register(_Status(status))

    @contextmanager
    def loading(self, tier: Tier) -> Iterator[None]:
        """Times a load that succeeds, and counts one that does not."""
        began = time.perf_counter()
        try:
            yield
        except AdapterError as error:
            self.failed(tier, error.problem)
            raise
        self._loads.labels(tier).observe(time.perf_counter() - began)

    def failed(self, tier: Tier, problem: AdapterProblem) -> None:
        self._failures.labels(tier, problem).inc()

    def refused(self, problem: AdapterProblem) -> None:
        self._refusals.labels(problem).inc()

    def waited(self, seconds: float) -> None:
        self._waits.observe(seconds)

    def found(self, tier: Tier) -> None:
        self._finds.labels(tier).inc()

    def evicted(self, tier: str) -> None:
        self._evictions.labels(tier).inc()

    def quarantined(self) -> None:
        self._quarantined.inc()

    def spent(self, tenant: str, tokens: "Tokens") -> None:
        if len(self._tenants) < TENANT_LABELS:
            self._tenants.add(tenant)
        label = tenant if tenant in self._tenants else OTHERS
        self._tokens.labels(label, "prompt").inc(tokens.prompt)
        self._tokens.labels(label, "completion").inc(tokens.completion)


class _Status(Collector):
    def __init__(self, status: Callable[[], ReplicaStatus]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        status = self._status()
        tiers = list(status.adapters.values())
        resident = GaugeMetricFamily("weft_adapters_resident", "Adapters by their fastest tier.", labels=["tier"])
        for tier in ("gpu", "cpu", "disk"):
            resident.add_metric([tier], tiers.count(tier))
        in_flight = sum(status.in_flight.values())
        yield resident
        yield GaugeMetricFamily("weft_requests_in_flight", "Requests inside vLLM.", value=in_flight)
        yield GaugeMetricFamily("weft_requests_waiting", "Requests that wait for a turn.", value=status.waiting)
        yield GaugeMetricFamily("weft_cache_bytes", "Bytes of adapters on disk.", value=status.disk_bytes)
