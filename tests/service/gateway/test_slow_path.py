"""A client that reads nothing, over the whole path: the gateway and a replica's server hold little between them."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn

from inference.connections import Connection
from tests.conftest import free_port, wait_until
from tests.service.conftest import Service
from tests.service.gateway.conftest import Tenant, beat, chat
from tests.service.gateway.test_breaks import connect
from tests.service.gateway.test_slow_clients import SMALL, cut_off, stands_still
from tests.service.gateway.upstream import Upstream, endless

HELD = 256 << 10


@dataclass
class Talker:
    """In vLLM's place behind a replica's own server: talks for as long as anybody takes it, and counts what was."""

    sent: int = 0
    left: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/health":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            return await send({"type": "http.response.body", "body": b""})
        await receive()
        gone = asyncio.create_task(receive())
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for event in endless("any", content="y" * 200):
            if gone.done():
                return self.left.set()
            await send({"type": "http.response.body", "body": event, "more_body": True})
            self.sent += len(event)
            await asyncio.sleep(0)
        return None


@pytest.fixture
def talker(service: Service) -> Iterator[Talker]:
    """The only replica that is ready."""
    made, port = Talker(), free_port()
    config = uvicorn.Config(made, port=port, http=Connection, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="talker")
    thread.start()
    wait_until(lambda: server.started, what="the server runs")
    replica = Upstream(port)
    beat(service, replica)
    yield made
    beat(service, replica, state="down")
    server.force_exit = server.should_exit = True
    thread.join(10)


def test_of_an_answer_that_nobody_reads_little_waits_in_gateway_and_replica_together(
    service: Service, talker: Talker, tenant: Tenant
) -> None:
    body = chat(tenant.model, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    with connect(service, tenant.key, body, SMALL) as client:
        wait_until(lambda: stands_still(lambda: talker.sent), what="the replica is held back")
        stopped = time.monotonic()
        # What the client's own kernel has is not ours.
        held = talker.sent - len(client.recv(1 << 20, socket.MSG_PEEK))
        assert SMALL < held <= HELD
        assert talker.left.wait(3 * service.settings.stall_seconds)
        assert time.monotonic() - stopped < 2 * service.settings.stall_seconds
        assert cut_off(client)
