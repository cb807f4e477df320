"""Requests of one alias at a steady rate over several gateways, half of them streams, while somebody flips it."""

import asyncio
import itertools
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
from sqlalchemy import text

from service.resources import Resources
from tests.chaos.flips.judging import Asked, Flip

ADAPTER, ALIAS = "support-bot", "prod"
TOKENS = 8
PROMPT = "Please ship order 4821 for Mira Kato to Lund."


@dataclass(frozen=True)
class Ground:
    """A running service of one or more gateways. Version n of the adapter says `says[n - 1]`."""

    gateways: list[str]
    key: str
    says: list[str]
    resources: Resources

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    async def register(self, client: aiohttp.ClientSession, models: list[str]) -> None:
        """An adapter with these models as its versions."""
        await self.call(client, "POST", "", {"name": ADAPTER})
        for model in models:
            await self.call(client, "POST", f"/{ADAPTER}/versions", {"source": {"type": "model", "model": model}})

    async def booked(self) -> dict[int, int]:
        """How many answers of each version the ledger has."""
        query = text(
            "select model, count(*) from usage where kind = 'completion' and base_model is not null group by 1"
        )
        async with self.resources.database.control() as session:
            return {int(model.partition("@v")[2]): count for model, count in await session.execute(query)}

    async def call(self, client: aiohttp.ClientSession, method: str, path: str, body: Any, gateway: int = 0) -> None:
        url = f"{self.gateways[gateway]}/v1/adapters{path}"
        while True:
            async with client.request(method, url, json=body, headers=self.headers) as answer:
                said = await answer.text()
            if answer.status == 200:
                return
            # Not acknowledged, and safe to ask for again.
            if answer.status != 503:
                raise RuntimeError(f"{method} {path}: {answer.status} {said}")
            print(f"asked again: {said}", flush=True)


@dataclass
class Traffic:
    ground: Ground
    client: aiohttp.ClientSession
    asked: list[Asked] = field(default_factory=list[Asked])
    flips: list[Flip] = field(default_factory=list[Flip])

    async def run(self, flips: int, rate: float, pause: float) -> float:
        """All flips under so many requests a second; the seconds that it took."""
        await self._flip(0)
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(self._ask(rate))
            chance = random.Random(7)
            for number in range(1, flips + 1):
                await asyncio.sleep(chance.uniform(0.5, 1.5) * pause)
                await self._flip(number)
            # An old answer after the last one would be seen, too.
            await asyncio.sleep(1.0)
            asking.cancel()
        return time.monotonic() - began

    async def _flip(self, number: int) -> None:
        version = 1 + number % len(self.ground.says)
        sent = time.monotonic()
        path, gateway = f"/{ADAPTER}/aliases/{ALIAS}", number % len(self.ground.gateways)
        await self.ground.call(self.client, "PUT", path, {"version": version}, gateway)
        self.flips.append(Flip(version, sent, time.monotonic()))

    async def _ask(self, rate: float) -> None:
        """Whatever the answers do. Ends, once cancelled, when all that was asked is answered."""
        start = time.monotonic()
        open_ones: set[asyncio.Task[None]] = set()
        try:
            for number in itertools.count():
                await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
                task = asyncio.create_task(self._one(number))
                open_ones.add(task)
                task.add_done_callback(open_ones.discard)
        finally:
            await asyncio.gather(*open_ones)

    async def _one(self, number: int) -> None:
        gateway, stream = number % len(self.ground.gateways), number // len(self.ground.gateways) % 2 == 0
        body = {
            "model": f"{ADAPTER}@{ALIAS}",
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": TOKENS,
            "temperature": 0,
            "stream": stream,
        }
        url = f"{self.ground.gateways[gateway]}/v1/chat/completions"
        began, version, problem = time.monotonic(), None, ""
        try:
            async with self.client.post(url, json=body, headers=self.ground.headers) as answer:
                raw = await answer.read()
            version = self._version(answer, raw, stream)
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError) as error:
            problem = f"{type(error).__name__}: {error}"
        self.asked.append(Asked(began, time.monotonic(), gateway, version, problem))

    def _version(self, answer: aiohttp.ClientResponse, raw: bytes, stream: bool) -> int:
        """Whose answer it is. Raises ValueError where it is not whole, or not one version's from end to end."""
        if answer.status != 200:
            raise ValueError(f"status {answer.status} {raw[:200]!r}")
        parts = [orjson.loads(raw)] if not stream else _events(raw)
        said = "".join(
            (choice.get("delta") or choice.get("message"))["content"] or ""
            for part in parts
            for choice in part["choices"]
            if "content" in (choice.get("delta") or choice.get("message"))
        )
        names = {part["model"] for part in parts} | {answer.headers["x-adapter-version"]}
        if len(names) != 1:
            raise ValueError(f"several versions: {sorted(names)}")
        version = int(names.pop().removeprefix(f"{ADAPTER}@v"))
        if said != self.ground.says[version - 1]:
            raise ValueError(f"version {version} said {said[:20]!r} instead of {self.ground.says[version - 1][:20]!r}")
        return version


def _events(raw: bytes) -> list[Any]:
    events = [event.removeprefix(b"data: ") for event in raw.split(b"\n\n")]
    if events[-2:] != [b"[DONE]", b""]:
        raise ValueError("the stream broke off")
    return [orjson.loads(event) for event in events[:-2]]
