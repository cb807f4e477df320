"""What one vLLM server shares between Weft's routes and admission: the parts wired together, and their background work.

Two things go on beside the requests: the hottest adapters are written down, and after a start the ones that were hot
before it are loaded again, from disk only.
"""

import asyncio
import logging
import math
from functools import partial

from prometheus_client import CollectorRegistry

from inference import engine as patches
from inference.cache import AdapterCache
from inference.gate import AdapterGate, layers_of_base, template_of_base
from inference.hottest import Hottest
from inference.metering import Recent, Tokens
from inference.metrics import Metrics
from inference.problems import AdapterError
from inference.quarantine import Quarantine
from inference.registry import Engine, Registry
from inference.residency import Residency
from inference.settings import ReplicaSettings
from inference.source import AdapterSources
from inference.turns import Limits, Turns
from service.contracts.replica import ReplicaStatus

logger = logging.getLogger("weft.plugin")

SAVE_SECONDS = 1.0
ANY_PROMPT = (0,)
"""One token, which every vocabulary has."""


class Runtime:
    """Needs a running event loop."""

    def __init__(self, settings: ReplicaSettings, engine: Engine, registry: CollectorRegistry) -> None:
        self.base_model = settings.base_model
        self.authorization = f"Bearer {settings.api_key.get_secret_value()}".encode()
        self.max_body_bytes = settings.max_body_bytes
        self.evict_seconds = settings.hold_seconds
        self.stall_seconds = settings.stall_seconds
        self.metrics = Metrics(registry, restarts=settings.restarts)
        self.recent = Recent()
        self._gate = AdapterGate(
            partial(layers_of_base, settings.base_source),
            partial(template_of_base, settings.base_source),
            base_fingerprint=settings.base_fingerprint,
            max_rank=settings.max_lora_rank,
        )
        self._sources = AdapterSources(settings)
        self._cache = AdapterCache(
            settings.cache_dir / "adapters",
            self._sources,
            self._gate,
            self.metrics,
            budget=settings.cache_bytes,
            fetch_seconds=settings.fetch_timeout_seconds,
        )
        self._turns = Turns(limits_of(settings))
        self._hottest = Hottest(settings.cache_dir / "hottest.json")
        self._quarantine = Quarantine(settings.cache_dir / "quarantine.json")
        self._engine = engine
        known = Registry(engine, self._cache, self.metrics, most=settings.max_cpu_loras)
        self.residency = Residency(
            known,
            self._cache,
            self._turns,
            self.metrics,
            self._hottest,
            self._quarantine,
            hold_seconds=settings.hold_seconds,
        )
        self._rewarmed = settings.max_cpu_loras // 2
        self._tasks: list[asyncio.Task[None]] = []
        self._judging: dict[str, asyncio.Task[None]] = {}
        self.metrics.watch(self.status)

    async def start(self) -> None:
        """Begins the work beside the requests. Learning the base's layers takes a second, once."""
        await asyncio.to_thread(self._gate.prepare)
        patches.on_corruption(self.corrupted)
        hot = [name for name in self._hottest.first(self._rewarmed) if self._cache.holds(name)]
        self._tasks = [asyncio.create_task(self._rewarm(hot)), asyncio.create_task(self._keep_saving())]

    async def close(self) -> None:
        patches.on_corruption(None)
        tasks = [*self._tasks, *self._judging.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._hottest.save()
        await self._cache.close()
        await self._sources.close()

    def spent(self, tenant: str, request_id: str, tokens: Tokens) -> None:
        """A request is over that cost so much."""
        self.metrics.spent(tenant, tokens)
        self.recent.note(request_id, tokens)

    def status(self) -> ReplicaStatus:
        in_flight = self._turns.in_flight
        return ReplicaStatus(
            base_model=self.base_model,
            adapters=self.residency.tiers(),
            in_flight={adapter or self.base_model: requests for adapter, requests in in_flight.items()},
            waiting=self._turns.waiting,
            disk_bytes=self._cache.disk_bytes,
            quarantined=self._quarantine.confirmed,
        )

    def corrupted(self, adapter: str | None) -> None:
        """A request's logits were not numbers. Those of the base can only be somebody else's doing: see the canary."""
        logger.error("logits of %s are not numbers", "the base" if adapter is None else f"adapter {adapter}")
        if adapter is not None and adapter not in self._judging:
            self._quarantine.suspect(adapter)
            self.metrics.quarantined()
            self._judging[adapter] = asyncio.create_task(self._judge(adapter))
            self._judging[adapter].add_done_callback(lambda _: self._judging.pop(adapter))

    async def _judge(self, adapter: str) -> None:
        """The adapter is at fault if the engine still computes numbers without it; else the launcher will see to it."""
        try:
            seen = await self._engine.predict(None, ANY_PROMPT)
        except AdapterError as error:
            logger.warning("whether adapter %s is at fault is not known: %s", adapter, error.message)
            return
        if seen and all(map(math.isfinite, seen.values())):
            self._quarantine.confirm(adapter)

    async def _rewarm(self, adapters: list[str]) -> None:
        """The hottest last, so that it ends up as the most recently used."""
        for adapter in reversed(adapters):
            try:
                await self.residency.ensure(adapter)
            except AdapterError as error:
                logger.warning("adapter %s was hot and is not loaded again: %s", adapter, error.message)

    async def _keep_saving(self) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            self._hottest.save()


def limits_of(settings: ReplicaSettings) -> Limits:
    return Limits(
        slots=settings.max_loras,
        in_flight=settings.max_in_flight,
        tenant_in_flight=settings.tenant_in_flight,
        waiting=settings.queue_limit,
        tenant_waiting=settings.tenant_queue_limit,
        waiting_bytes=settings.queue_bytes,
        tenant_waiting_bytes=settings.tenant_queue_bytes,
        stint=settings.stint_seconds,
    )
