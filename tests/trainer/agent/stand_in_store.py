"""An object store in memory, over real HTTP, that breaks where a test says so. The service shares its faults."""

import json
from collections.abc import Callable
from typing import Literal

from aiohttp import web

TOKEN = "worker-token-of-the-tests"
Fault = Literal["none", "503", "drop", "answer_lost"]
"""`drop`: the connection ends before the call took effect; `answer_lost`: after it did."""


class StandInStore:
    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self.fault: Callable[[str], Fault] = lambda call: "none"
        self.on_get: Callable[[str, bytes], bytes] = lambda key, body: body
        self.put_status: Callable[[str], int] = lambda key: 200
        self.url = ""

    def object_keys(self, kind: str) -> list[str]:
        return [key for key in self.puts if key.startswith(kind)]

    async def _get(self, request: web.Request) -> web.StreamResponse:
        assert "Authorization" not in request.headers, "the worker token must not reach the store"
        key = request.match_info["key"]
        fault = self._enter(request, "get", authorized=False)
        if fault:
            return self._broken(request, fault)
        if key not in self.objects:
            return web.Response(status=404)
        return web.Response(body=self.on_get(key, self.objects[key]))

    async def _put(self, request: web.Request) -> web.StreamResponse:
        assert "Authorization" not in request.headers, "the worker token must not reach the store"
        body = await request.read()
        fault = self._enter(request, "put", authorized=False)
        if fault in ("503", "drop"):
            return self._broken(request, fault)
        key = request.match_info["key"]
        if (status := self.put_status(key)) != 200:
            return web.Response(status=status)
        self.objects[key] = body
        self.puts.append(key)
        if fault == "answer_lost":
            return self._broken(request, fault)
        return web.Response(status=200)

    def _enter(self, request: web.Request, call: str, authorized: bool = True) -> Fault | None:
        if authorized and request.headers["Authorization"] != f"Bearer {TOKEN}":
            raise web.HTTPUnauthorized(
                text=json.dumps({"error": {"message": "Incorrect API key provided.", "code": "invalid_api_key"}})
            )
        self.calls.append((call, request.match_info.get("job", "")))
        fault = self.fault(call)
        return None if fault == "none" else fault

    def _broken(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        if fault == "503":
            return web.json_response({"error": {"message": "busy", "code": "unavailable"}}, status=503)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
