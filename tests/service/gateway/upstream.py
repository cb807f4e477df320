"""A replica's HTTP side for tests: a real server that answers with vLLM's bytes and remembers what it was asked.

`script` replaces the usual answer by whatever a test needs: a refusal, a delay, a death.
"""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiohttp import web

from service.contracts.replica import SPENT_PATH
from tests.service.gateway.captured import CHAT_COUNTED, CHAT_WHOLE, TEXT_COUNTED
from tests.service.gateway.captured_responses import STREAM, WHOLE

Script = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def named(data: bytes, model: str) -> bytes:
    """Captured bytes with the model's name in place."""
    return data.replace(b'"model":"MODEL"', b'"model":' + json.dumps(model).encode())


class Upstream:
    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.api_key = f"upstream-key-{port}"
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.aborted = 0
        self.script: Script | None = None
        self.extra_headers: dict[str, str] = {}
        self.ensured: list[str] = []
        self.spent: dict[str, tuple[int, int]] = {}
        """What is told of requests, by their ids, when somebody asks."""
        self.spent_asked = 0
        self.healthy = True

    def reset(self) -> None:
        self.bodies.clear()
        self.headers.clear()
        self.aborted = 0
        self.script = None
        self.extra_headers = {}
        self.ensured.clear()
        self.spent.clear()
        self.spent_asked = 0
        self.healthy = True

    def start(self) -> None:
        started = threading.Event()

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            self._stopping = asyncio.Event()
            app = web.Application(client_max_size=16 << 20)
            app.router.add_post("/v1/weft/adapters/ensure", self._ensure)
            app.router.add_post(SPENT_PATH, self._spent)
            app.router.add_post("/v1/{path:.*}", self._handle)
            app.router.add_get("/health", self._health)
            # Like vLLM, which aborts a request whose connection is gone.
            runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self.port).start()
            started.set()
            await self._stopping.wait()
            await runner.cleanup()

        self._thread = threading.Thread(target=asyncio.run, args=(serve(),), name="upstream")
        self._thread.start()
        assert started.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        body = await request.json()
        self.bodies.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        try:
            if self.script is not None:
                return await self.script(request, body)
            return await self.usual(request, body)
        except (asyncio.CancelledError, ConnectionResetError):
            self.aborted += 1
            raise

    async def _ensure(self, request: web.Request) -> web.Response:
        self.ensured.append((await request.json())["adapter_id"])
        return web.json_response({"adapter_id": self.ensured[-1], "tier": "store"})

    async def _spent(self, request: web.Request) -> web.Response:
        if request.headers.get("authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        self.spent_asked += 1
        known = {name: self.spent[name] for name in (await request.json())["ids"] if name in self.spent}
        tokens = {name: {"prompt": prompt, "completion": completion} for name, (prompt, completion) in known.items()}
        return web.json_response({"tokens": tokens})

    async def _health(self, request: web.Request) -> web.Response:
        if not self.healthy:
            # As a stopped process: the kernel takes the connection, nobody answers.
            await asyncio.sleep(30)
        return web.Response()

    async def usual(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if request.path.endswith("/responses"):
            return await self._response(request, body)
        if not body.get("stream"):
            return web.Response(
                body=named(CHAT_WHOLE, body["model"]), content_type="application/json", headers=self.extra_headers
            )
        events = CHAT_COUNTED if request.path.endswith("/chat/completions") else TEXT_COUNTED
        return await self.stream(request, (named(event, body["model"]) for event in events))

    async def _response(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body.get("stream"):
            return await self.stream(request, (named(event, body["model"]) for event in STREAM))
        return web.Response(body=named(WHOLE, body["model"]), content_type="application/json")

    async def stream(
        self, request: web.Request, parts: Iterable[bytes], pause: float = 0.0, *, ends: bool = True
    ) -> web.StreamResponse:
        """An event stream of `parts` as they are; without `ends`, the connection is cut after them."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"} | self.extra_headers)
        await response.prepare(request)
        for part in parts:
            await response.write(part)
            # Also without a pause: a sender that never lets go could not notice that its reader went away.
            await asyncio.sleep(pause)
        if not ends:
            assert request.transport is not None
            request.transport.abort()
        return response


def endless(model: str, prompt_tokens: int = 6, content: str = "x") -> Iterable[bytes]:
    """A chat that never stops, one token per event, counted as vLLM counts."""
    yield named(CHAT_COUNTED[0], model)
    number = 0
    while True:
        number += 1
        event = CHAT_COUNTED[1].replace(b"He said ", content.encode())
        counts = f'"total_tokens":{prompt_tokens + number},"completion_tokens":{number}'.encode()
        yield named(event.replace(b'"total_tokens":7,"completion_tokens":1', counts), model)
