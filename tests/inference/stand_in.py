"""What stands where vLLM would in the admission tests, and the HTTP peer that asks it; everything between is real."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from inference.admission import Admission
from inference.runtime import Runtime
from inference.work import current
from service.contracts.replica import TENANT_HEADER

KEY = b"Bearer replica-key-0123456789"
CHAT = "/v1/chat/completions"


@dataclass
class StandIn:
    """Engine and application in one: streams an answer, and fails loudly where vLLM's engine would die.

    Answers wait for the `gate`, which is open at first, and loads of `slow` adapters for their events.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    loads: Counter[str] = field(default_factory=Counter)
    canaries: Counter[str] = field(default_factory=Counter)
    predicts: dict[int, float] = field(default_factory=dict)
    base: dict[int, float] = field(default_factory=lambda: {1: -0.5})
    """What the base predicts."""
    thinks: float = 0.0
    """Seconds that a prediction takes."""
    loads_in: float = 0.001
    """Seconds that a load takes."""
    running: Counter[str] = field(default_factory=Counter)
    most_distinct: int = 0
    bodies: list[bytes] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    slow: dict[str, asyncio.Event] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Adapters whose load has begun."""
    aborted: int = 0
    parts: int = 1
    """Of an answer, before its last one."""

    def __post_init__(self) -> None:
        self.gate.set()

    async def load(self, adapter: str, folder: Path) -> None:
        self.asked.append(adapter)
        if adapter in self.slow:
            await self.slow[adapter].wait()
        await asyncio.sleep(self.loads_in)
        self.loads[adapter] += 1
        self.folders[adapter] = folder

    async def unload(self, adapter: str) -> None:
        before = self.running[adapter]
        await asyncio.sleep(0.001)
        if before or self.running[adapter]:
            self.deaths.append(f"{adapter} unloaded while in use")
        del self.folders[adapter]

    async def predict(self, adapter: str | None, prompt: Tokens[int]) -> Mapping[int, float]:
        if adapter is None:
            return self.base
        self.canaries[adapter] += 1
        self.running[adapter] += 1
        await asyncio.sleep(self.thinks)
        self.running[adapter] -= 1
        return self.predicts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] not in (CHAT, "/v1/completions"):
            return await self._plain(send)
        body = (await receive())["body"]
        self.bodies.append(body)
        model = json.loads(body)["model"]
        if model != "base" and not self.folders[model].exists():
            self.deaths.append(f"{model} served without files")
        self.running[model] += 1
        self.most_distinct = max(self.most_distinct, len((+self.running).keys() - {"base"}))
        sequence = Sequence(self.gate)
        sequence.ended.add_done_callback(lambda _: self.running.subtract([model]))
        try:
            await self._stream(sequence, receive, send)
        finally:
            sequence.ended.cancel()

    async def _stream(self, sequence: "Sequence", receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number in range(self.parts):
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % (number + 1), "more_body": True})
        gone = asyncio.create_task(receive())
        await asyncio.wait({sequence.ended, gone}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            assert gone.result()["type"] == "http.disconnect"
            self.aborted += 1
            return
        gone.cancel()
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def _plain(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"vllm", "more_body": False})


class Sequence:
    """What vLLM's engine computes, at its own pace: one token at once and one at its end, when the gate is open."""

    prompt_len, request_index = 3, 0

    def __init__(self, gate: asyncio.Event) -> None:
        self.stats = SimpleNamespace(num_generation_tokens=1)
        self._gate = gate
        self._work = current()
        if self._work is not None:
            self._work.check_open()
            self._work.begin(self)
        self.ended = asyncio.create_task(self._compute())

    async def _compute(self) -> None:
        await self._gate.wait()
        self.stats.num_generation_tokens += 1
        if self._work is not None:
            self._work.end()


class Client:
    """One request; `leave` disconnects, and without `reads` it takes nothing of its answer."""

    def __init__(
        self,
        admission: Admission,
        runtime: Runtime,
        path: str,
        body: bytes,
        key: bytes,
        method: str,
        tenant: str | None = None,
    ) -> None:
        self.sent: list[dict[str, Any]] = []
        self._parts = [body[: len(body) // 2], body[len(body) // 2 :]]
        self.parts_read = 0
        self._left = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        headers = [(b"authorization", key)] if key else []
        headers += [(TENANT_HEADER.encode(), tenant.encode())] if tenant else []
        app = SimpleNamespace(state=SimpleNamespace(weft=runtime))
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "app": app}
        self.task = asyncio.create_task(admission(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._parts:
            self.parts_read += 1
            return {"type": "http.request", "body": self._parts.pop(0), "more_body": bool(self._parts)}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        await self.reads.wait()

    def leave(self) -> None:
        self._left.set()

    async def first_byte(self) -> None:
        async with asyncio.timeout(10):
            while len(self.sent) < 2 and not self.task.done():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def done(self) -> "Client":
        async with asyncio.timeout(10):
            await self.task
        return self

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.body)["error"]


Call = Callable[..., Client]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - polled with a deadline
            await asyncio.sleep(0.005)
