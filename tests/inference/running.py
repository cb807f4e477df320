"""A running replica as the tests see it: over HTTP, through its heartbeats, and by its processes."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from service.contracts.replica import ReplicaHeartbeat
from tests.inference.conftest import ServiceAndStorage

READY_SECONDS = 240.0
PROMPT = "Name a colour."


@dataclass
class Replica:
    process: asyncio.subprocess.Process
    service: ServiceAndStorage
    session: aiohttp.ClientSession
    cache: Path
    log: Path

    @property
    def now(self) -> ReplicaHeartbeat:
        return self.service.heartbeats[-1]

    async def until(self, condition: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not condition():  # noqa: ASYNC110 - polled with a deadline
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"not {what} within {seconds} s; the log ends:\n{self.log.read_text()[-3000:]}")

    async def until_state(self, state: str, since: int = 0) -> None:
        """Until the service has heard of `state`, in a heartbeat after the first `since`."""
        await self.until(lambda: any(beat.state == state for beat in self.service.heartbeats[since:]), state)

    async def post(self, path: str, body: dict[str, Any], key: str | None = None) -> tuple[int, dict[str, Any], Any]:
        headers = {"Authorization": f"Bearer {self.now.api_key if key is None else key}"}
        async with self.session.post(f"{self.now.url}{path}", json=body, headers=headers) as response:
            return response.status, await response.json(), response.headers

    async def chat(self, model: str, tokens: int = 8) -> tuple[list[int], str | None]:
        """The greedy answer's tokens, and the tier the adapter was found in."""
        status, body, headers = await self.post("/v1/chat/completions", chat(model, tokens, return_token_ids=True))
        assert status == 200, body
        return body["choices"][0]["token_ids"], headers.get("x-adapter-cache")

    async def status(self) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.now.api_key}"}
        async with self.session.get(f"{self.now.url}/v1/weft/status", headers=headers) as response:
            return await response.json()

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def engine(self) -> psutil.Process:
        return next(child for child in self.processes() if "EngineCore" in " ".join(child.cmdline()))

    def api_server(self) -> psutil.Process:
        return psutil.Process(self.process.pid).children()[0]


def chat(model: str, tokens: int = 8, **changes: Any) -> dict[str, Any]:
    message = {"role": "user", "content": PROMPT}
    return {"model": model, "messages": [message], "max_tokens": tokens, "temperature": 0, "ignore_eos": True} | changes
