"""A replica that answers with vLLM's bytes and its ids on every route of inference, and clients that note what they are
told. What an answer costs follows from its request's id alone, and the id of an answer ends in that.
"""

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
from aiohttp import web

from service.contracts.replica import REQUEST_ID_HEADER
from tests.service.gateway.captured import CHAT_COUNTED, CHAT_WHOLE, TEXT_COUNTED, TEXT_HEAD
from tests.service.gateway.captured_responses import STREAM, WHOLE
from tests.service.gateway.conftest import BASE, Tenant
from tests.service.gateway.upstream import Upstream, named

MOST_STEPS = 30
STEP_SECONDS = 0.002
DELTAS = slice(4, 7)
"""Of the captured stream of a response; all others come once."""
ROUTES: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/completions": {"prompt": "Hi"},
    "/responses": {"input": "Hi"},
}
TEXT_WHOLE = TEXT_HEAD.removeprefix(b"data: ") + TEXT_COUNTED[0].removeprefix(TEXT_HEAD).rstrip()

Booked = tuple[str, str, int, int]
"""Project, model, prompt tokens and completion tokens."""


def cost(request_id: str) -> tuple[int, int]:
    chance = random.Random(request_id)
    return chance.randint(1, 900), chance.randint(1, MOST_STEPS)


class Replica(Upstream):
    async def usual(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        name, path = request.headers[REQUEST_ID_HEADER], request.path.removeprefix("/v1")
        if body.get("stream"):
            return await self.stream(request, _events(path, name, body["model"]), STEP_SECONDS)
        await asyncio.sleep(STEP_SECONDS)
        whole = {"/chat/completions": CHAT_WHOLE, "/completions": TEXT_WHOLE, "/responses": WHOLE}[path]
        return web.Response(
            body=_counted(_of(whole, name, body["model"]), *cost(name)), content_type="application/json"
        )


def _of(data: bytes, name: str, model: str) -> bytes:
    return named(data, model).replace(b"req_0", name.encode()).replace(b'"id":"resp_1"', f'"id":"resp_{name}"'.encode())


def _events(path: str, name: str, model: str) -> Iterator[bytes]:
    prompt, completion = cost(name)
    if path == "/responses":
        yield from (_of(event, name, model) for event in STREAM[: DELTAS.start])
        yield from (STREAM[DELTAS.start] for _ in range(completion))
        *between, last = (_of(event, name, model) for event in STREAM[DELTAS.stop :])
        yield from (*between, _counted(last, prompt, completion))
        return
    captured = CHAT_COUNTED if path == "/chat/completions" else TEXT_COUNTED
    head, step, *_, counts, done = (_of(event, name, model) for event in captured)
    if path == "/chat/completions":
        yield _counted(head, prompt, 0)
    else:
        step = head
    for number in range(1, completion + 1):
        yield _counted(step, prompt, number)
    yield _counted(counts, prompt, completion)
    yield done


def _counted(data: bytes, prompt: int, completion: int) -> bytes:
    """With these numbers in its count."""
    before, mark, after = data.partition(b'"usage":{"')
    kind = b"output" if after.startswith(b"input") else b"completion"
    rest = after[after.index(b'"%b_tokens":' % kind) :].partition(b":")[2].lstrip(b"0123456789")
    names = ("input", "output") if kind == b"output" else ("prompt", "completion")
    counts = f'{names[0]}_tokens":{prompt},"{names[1]}_tokens":{completion}'
    if kind == b"output":
        rest = rest.replace(b'"total_tokens":9', f'"total_tokens":{prompt + completion}'.encode())
    else:
        counts += f',"total_tokens":{prompt + completion}'
    return before + mark + counts.encode() + rest


@dataclass
class Client:
    """Asks one thing after the other, on each route, whole and streamed, and remembers what it was told."""

    url: str
    tenant: Tenant
    stop: threading.Event
    told: dict[str, Booked] = field(default_factory=dict[str, Booked])
    """What an answer said that it cost, by the answer's id in the ledger."""
    whole: dict[str, str] = field(default_factory=dict[str, str])
    """The routes of answers that came to their end, by the same."""
    begun: set[str] = field(default_factory=set[str])
    refusals: list[str] = field(default_factory=list[str])

    def run(self) -> None:
        headers = {"authorization": f"Bearer {self.tenant.key}"}
        with httpx2.Client(base_url=f"{self.url}/v1", headers=headers, timeout=20) as http:
            asked = 0
            while not self.stop.is_set():
                asked += 1
                path = list(ROUTES)[asked % 3]
                body = {**ROUTES[path], "model": self.tenant.model if asked % 4 else BASE, "stream": asked % 2 == 0}
                try:
                    self._ask(http, path, body)
                except httpx2.TransportError:
                    time.sleep(0.05)

    def _ask(self, http: httpx2.Client, path: str, body: dict[str, Any]) -> None:
        if body["stream"] and path != "/responses":
            body["stream_options"] = {"include_usage": True}
        with http.stream("POST", path, json=body) as answer:
            if answer.status_code != 200:
                answer.read()
                self.refusals.append(answer.text)
                time.sleep(0.05)
            elif body["stream"]:
                self._read(answer, path, body["model"])
            else:
                answer.read()
                self.whole[self._note(answer.json(), body["model"])] = path

    def _read(self, answer: httpx2.Response, path: str, model: str) -> None:
        last = ""
        for line in answer.iter_lines():
            word = line.removeprefix("data: ")
            if word == "[DONE]":
                self.whole[last] = path
            elif word and word != line:
                event = json.loads(word)
                assert "error" not in event, event
                said = event if path != "/responses" else event.get("response")
                last = self._note(said, model) if said else last
                if event.get("type") == "response.completed":
                    self.whole[last] = path

    def _note(self, said: dict[str, Any], model: str) -> str:
        """The answer's id in the ledger."""
        _, _, name = said["id"].partition("resp_" if said["object"] == "response" else "cmpl-")
        usage = said.get("usage")
        self.begun.add(name)
        if usage:
            assert said["model"] == model
            prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
            completion = usage.get("completion_tokens", usage.get("output_tokens"))
            self.told[name] = (self.tenant.project, model, prompt, completion)
        return name
