"""The real application under uvicorn on a loopback port, one per test module, and clients for it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
import pytest
import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.connections import connections
from service.settings import ServiceSettings
from tests.conftest import wait_until


@dataclass
class Service:
    """A running application. `call` runs a coroutine on its event loop, for tests that look behind the API."""

    settings: ServiceSettings
    app: FastAPI
    url: str
    loop: asyncio.AbstractEventLoop
    clients: list[openai.OpenAI] = field(default_factory=list)

    @property
    def resources(self) -> Any:
        return self.app.state.resources

    def call(self, coroutine: Any, seconds: float = 30) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        return future.result(seconds)

    def client(self, key: str) -> openai.OpenAI:
        """A stock SDK client that shows each error at once instead of retrying it."""
        made = openai.OpenAI(api_key=key, base_url=f"{self.url}/v1", max_retries=0, timeout=30)
        self.clients.append(made)
        return made


@pytest.fixture(scope="module")
def service(service_settings: ServiceSettings) -> Iterator[Service]:
    app = create_app(service_settings)
    loops: list[asyncio.AbstractEventLoop] = []
    config = uvicorn.Config(
        app,
        port=service_settings.port,
        http=connections(service_settings.stall_seconds),
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="service")
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), what="service started")
        assert server.started, "the service refused to start"
        running = Service(service_settings, app, f"http://127.0.0.1:{service_settings.port}", loops[0])
        yield running
        for client in running.clients:
            client.close()
    finally:
        server.should_exit = True
        thread.join(15)


@pytest.fixture(scope="module")
def admin(service: Service) -> Iterator[httpx2.Client]:
    """Raw HTTP with the admin key; paths begin at /v1."""
    headers = {"authorization": f"Bearer {service.settings.admin_key.get_secret_value()}"}
    with httpx2.Client(base_url=f"{service.url}/v1", headers=headers, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def make_project(admin: httpx2.Client) -> Callable[[str], tuple[str, str]]:
    """Makes a project with one key; gives the project's id and the key."""

    def make(name: str) -> tuple[str, str]:
        project = admin.post("/organization/projects", json={"name": name})
        project.raise_for_status()
        key = admin.post(f"/organization/projects/{project.json()['id']}/api_keys", json={"name": "test"})
        key.raise_for_status()
        return project.json()["id"], key.json()["value"]

    return make


@pytest.fixture(scope="module")
def client(service: Service) -> Callable[[str], openai.OpenAI]:
    return service.client
