"""A running service that may send webhooks to loopback, and an endpoint there that takes notes."""

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from service.settings import ServiceSettings
from tests.service.conftest import Service
from tests.service.stage import Stage


@dataclass
class Receiver:
    """Answers each request with `status`, after `wait` has been set where there is one."""

    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    heard: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    wait: threading.Event | None = None


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            state.heard.append(({name.lower(): value for name, value in self.headers.items()}, body))
            if state.wait is not None:
                state.wait.wait(20)
            self.send_response(state.status)
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state
    if state.wait is not None:
        state.wait.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    return service_settings.model_copy(update={"webhooks_to_private_networks": True})


@pytest.fixture(scope="module")
def stage(service: Service) -> Stage:
    return Stage(service.resources, itertools.count())


@pytest.fixture(scope="module")
def make_owner(service: Service, stage: Stage) -> Callable[[], "Owner"]:
    return lambda: Owner(service, stage)


@pytest.fixture
def owner(make_owner: Callable[[], "Owner"]) -> "Owner":
    return make_owner()


class Owner:
    """A project with a key and the SDK's client."""

    def __init__(self, service: Service, stage: Stage) -> None:
        self.project = service.call(stage.project())
        self.key = service.call(stage.key(self.project))
        self.client = service.client(self.key)
