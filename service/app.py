"""Puts the features together into one ASGI application and holds what lives as long as the process.

A feature gives `routes.router`; what must run meanwhile is a coroutine function in BACKGROUND, given the Resources and
run until cancelled. Errors are rendered by `service.rendering`, requests framed by `service.middleware`.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import MappingProxyType

from fastapi import FastAPI
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

import service.adapters.routes
import service.batches.executor
import service.batches.routes
import service.files.routes
import service.files.sweep
import service.idempotency.sweep
import service.jobs.pace
import service.jobs.routes
import service.jobs.waiting
import service.leases.reap
import service.leases.routes
import service.promotions.executor
import service.promotions.rollback
import service.promotions.routes
import service.registry.routes
import service.registry.sweep
import service.replicas.routes
import service.tenants.routes
import service.transfers.routes
import service.transfers.sweep
import service.transfers.worker_routes
import service.uploads.background
import service.uploads.routes
import service.uploads.sweep
import service.usage.routes
import service.webhooks.deliver
import service.webhooks.routes
from service import health, monitoring
from service.files.spooling import Spooling
from service.gateway.routes import Gateway
from service.idempotency.route import Attempts
from service.middleware import BodyLimit, Direct, RequestFrame
from service.openapi.pages import pages
from service.rendering import RENDERED, render
from service.resources import Resources
from service.settings import ServiceSettings
from service.tenants.auth import KeyCache
from service.tenants.projects import ensure_organization
from service.tenants.request_rate import RequestRate

ROUTERS = (
    health.router,
    monitoring.router,
    service.tenants.routes.router,
    service.usage.routes.router,
    service.files.routes.router,
    service.uploads.routes.router,
    service.jobs.routes.router,
    service.adapters.routes.router,
    # Before the adapters, whose names stand where these routes have words of their own.
    service.transfers.routes.router,
    service.transfers.worker_routes.router,
    service.registry.routes.router,
    service.promotions.routes.router,
    service.batches.routes.router,
    service.leases.routes.router,
    service.replicas.routes.router,
    service.webhooks.routes.router,
)
BACKGROUND: dict[str, Callable[[Resources], Awaitable[None]]] = {
    "reaper": service.leases.reap.run,
    "pace": service.jobs.pace.run,
    "jobs that wait for files": service.jobs.waiting.run,
    "file sweeper": service.files.sweep.run,
    "upload sweeper": service.uploads.sweep.run,
    "adapter sweeper": service.registry.sweep.run,
    "transfers": service.transfers.sweep.run,
    "automatic rollback": service.promotions.rollback.run,
    "upload assembler": service.uploads.background.run,
    "webhook deliverer": service.webhooks.deliver.run,
    "answer sweeper": lambda resources: service.idempotency.sweep.run(resources.database),
    "notifications": lambda resources: resources.notifications.run(),
}
STORAGE_THREADS = 32
RESTART_SECONDS = 1.0

log = logging.getLogger("service.app")


class Application(FastAPI):
    """FastAPI, but for what is posted to the paths of `direct`."""

    direct: Mapping[str, ASGIApp] = MappingProxyType({})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        posted = scope["type"] == "http" and scope["method"] == "POST"
        direct = self.direct.get(scope["path"]) if posted else None
        if direct is not None:
            await direct(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(settings: ServiceSettings) -> FastAPI:
    """The application; it connects to nothing before its lifespan starts."""
    app = Application(title="Weft", redirect_slashes=False, openapi_url=None, lifespan=lifespan)
    resources = Resources.of(settings)
    keys = KeyCache(resources.database, settings.cache_seconds)
    resources.notifications.subscribe("key", keys.forget)
    app.state.resources = resources
    app.state.event_streams = Counter[str]()
    app.state.keys = keys
    app.state.spooling = Spooling(settings)
    app.state.request_rate = RequestRate(settings.max_management_requests_per_minute)
    app.state.attempts = Attempts(settings.secret.get_secret_value())
    app.state.readiness = health.Readiness()
    app.state.gateway = Gateway(resources, keys)
    app.state.monitoring = monitoring.Monitoring(resources, app.state.gateway)
    # The last one added is the outermost.
    app.add_middleware(
        BodyLimit,
        max_body_bytes=settings.max_body_bytes,
        max_prompt_bytes=settings.max_prompt_bytes,
        max_file_bytes=settings.max_file_bytes,
        max_part_bytes=settings.max_part_bytes,
        max_unannounced_bytes=settings.max_unannounced_bytes,
    )
    app.add_middleware(RequestFrame, metrics=resources.metrics)
    for error in RENDERED:
        app.add_exception_handler(error, render)
    for router in ROUTERS:
        app.include_router(router)
    endpoints: dict[str, ASGIApp] = app.state.gateway.endpoints()
    app.direct = {
        path: RequestFrame(
            Direct(endpoint, settings.max_prompt_bytes, settings.max_unannounced_bytes), resources.metrics
        )
        for path, endpoint in endpoints.items()
    }
    # For the other methods, which are refused.
    app.router.routes.extend(Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items())
    app.router.routes.extend(pages(public_routes()))
    return app


def public_routes() -> list[BaseRoute]:
    """What the OpenAPI document describes, with the internal ones that it leaves out."""
    return [route for router in ROUTERS for route in router.routes]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Checks what the service stands on, runs the background work and closes everything. Raises where a check fails."""
    resources: Resources = app.state.resources
    # Storage calls block; their threads must not be the few that name resolution waits for.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(STORAGE_THREADS, "storage"))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(resources.database.close)
        await resources.database.verify()
        await asyncio.to_thread(resources.store.ensure_bucket)
        async with resources.database.control() as session:
            await ensure_organization(session, resources.settings.organization_name)
        await stack.enter_async_context(app.state.gateway)
        batches = partial(service.batches.executor.run, gateway=app.state.gateway)
        evaluations = partial(service.promotions.executor.run, gateway=app.state.gateway)
        work = {**BACKGROUND, "batch executor": batches, "evaluations": evaluations}
        tasks = [asyncio.create_task(_kept_running(name, run, resources)) for name, run in work.items()]
        stack.push_async_callback(_cancelled, tasks)
        yield


async def _kept_running(name: str, run: Callable[[Resources], Awaitable[None]], resources: Resources) -> None:
    """One failure must not end the reaper for the life of the process."""
    while True:
        try:
            await run(resources)
        except Exception:
            log.exception("the %s failed; it starts again", name)
        await asyncio.sleep(RESTART_SECONDS)


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
