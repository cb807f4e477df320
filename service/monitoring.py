"""`GET /metrics`, for Prometheus: what this process has counted, what it carries now, and how the whole service stands.

Guarded, since it tells who uses how much: by the administrator's key, or by a token that opens nothing else. Labels are
ids and codes of our own making, never a word of a tenant's.
"""

import asyncio
import hmac
import time
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from service.db import Database, DatabaseUnavailable
from service.gateway.routes import Gateway
from service.jobs.models import JobRow
from service.metrics import OTHER, Metrics
from service.resources import CurrentResources, Resources
from service.tenants.auth import bearer, require_admin

JOBS_SECONDS = 15.0
"""Counting jobs reads the whole table."""


SHOWN: dict[int | str, Any] = {200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}}

router = APIRouter(tags=["health"])


async def require_reader(request: Request, resources: CurrentResources) -> None:
    """Whoever has the administrator's key, or the token for this."""
    token = resources.settings.metrics_token
    given = bearer(request.headers.get("authorization"))
    if token is None or not hmac.compare_digest(given.encode(), token.get_secret_value().encode()):
        await require_admin(request, resources)


@router.get("/metrics", response_class=Response, responses=SHOWN, dependencies=[Depends(require_reader)])
async def metrics(request: Request) -> Response:
    """What this process counts, for Prometheus. Also opened by the token that the configuration has for it."""
    monitoring: Monitoring = request.app.state.monitoring
    return Response(await monitoring.page(), headers={"content-type": CONTENT_TYPE_LATEST})


class Jobs:
    """How many jobs there are of each status: the last answer, kept for a while. None while the database gives none."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = asyncio.Lock()
        self._until = 0.0
        self.by_status: Mapping[str, int] | None = None

    async def refresh(self) -> None:
        async with self._lock:
            if time.monotonic() < self._until:
                return
            query = select(JobRow.status, func.count().label("number")).group_by(JobRow.status)
            try:
                async with self._database.control() as session:
                    self.by_status = {row.status: row.number for row in await session.execute(query)}
                self._until = time.monotonic() + JOBS_SECONDS
            except DatabaseUnavailable:
                self.by_status = None


class Monitoring:
    """One process's page."""

    def __init__(self, resources: Resources, gateway: Gateway) -> None:
        self._metrics = resources.metrics
        self._jobs = Jobs(resources.database)
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        for collector in (_Counted(resources.metrics), _Carried(gateway), _Service(resources, gateway, self._jobs)):
            self._registry.register(collector)

    async def page(self) -> bytes:
        self._metrics.tokens.elect()
        await self._jobs.refresh()
        return generate_latest(self._registry)


class _Counted(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "weft_requests", "Requests by route and class of status.", labels=["route", "status"]
        )
        for (route, status), number in self._metrics.requests.items():
            requests.add_metric([route, status], number)
        yield requests
        unanswered = CounterMetricFamily(
            "weft_placement_failures", "Completions that no replica answered, by the error's code.", labels=["code"]
        )
        for code, number in self._metrics.unanswered.items():
            unanswered.add_metric([code], number)
        yield unanswered
        tokens = CounterMetricFamily(
            "weft_tokens", "Tokens of the projects that use most, of all others together.", labels=["project", "kind"]
        )
        for project, used in (*self._metrics.tokens.shown.items(), (OTHER, self._metrics.tokens.others)):
            tokens.add_metric([project, "prompt"], used.prompt)
            tokens.add_metric([project, "completion"], used.completion)
        yield tokens


class _Carried(Collector):
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        limits, spool = self._gateway.limits, self._gateway.spool
        yield GaugeMetricFamily("weft_completions", "Completions in progress.", value=limits.in_progress)
        yield GaugeMetricFamily("weft_completion_bytes", "Bytes that these hold.", value=limits.held_bytes)
        yield GaugeMetricFamily("weft_usage_accepted", "1 while usage can be recorded.", value=spool.accepting)


class _Service(Collector):
    """Each process says the same of these."""

    def __init__(self, resources: Resources, gateway: Gateway, jobs: Jobs) -> None:
        self._bases = [base.name for base in resources.settings.base_models]
        self._membership = gateway.membership
        self._jobs = jobs

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily("weft_replicas_ready", "Live replicas.", labels=["base_model"])
        suspects = GaugeMetricFamily(
            "weft_replicas_suspect", "Of these, such as failed just now.", labels=["base_model"]
        )
        for base in self._bases:
            replicas = self._membership.ready(base)
            ready.add_metric([base], len(replicas))
            suspects.add_metric([base], sum(map(self._membership.is_suspect, replicas)))
        yield ready
        yield suspects
        known = self._jobs.by_status
        yield GaugeMetricFamily("weft_database_up", "1 while the database answers.", value=known is not None)
        jobs = GaugeMetricFamily("weft_jobs", "Training jobs by status.", labels=["status"])
        for status, number in (known or {}).items():
            jobs.add_metric([status], number)
        yield jobs
