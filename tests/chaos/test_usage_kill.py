"""Kills of the gateway at random moments of traffic: whatever a client was told it used is in the ledger, once.

CHAOS_ROUNDS kills, few in the suite; `make chaos-usage` runs many and prints what it saw as JSON. An answer's `id`
ends in its id in the ledger, as vLLM makes it, so the two sides are compared answer by answer, not only in their sums.
"""

import asyncio
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from aiohttp import web

from service.contracts.replica import REQUEST_ID_HEADER, ReplicaHeartbeat
from service.replicas.register import announce
from service.settings import ServiceSettings
from service.usage.spool import REJECTED
from tests.chaos.killed import PATIENT_SECONDS, forks, serving
from tests.conftest import free_port, wait_until
from tests.service.gateway.captured import CHAT_COUNTED, CHAT_WHOLE
from tests.service.gateway.conftest import BASE, Tenant, make_tenant
from tests.service.gateway.upstream import Upstream, named
from tests.service.stage import Stage, open_stage

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "3"))
TENANTS = 3
CLIENTS_OF_EACH = 3
MOST_SECONDS = 1.5
"""A service is killed so long after its first answers: longer than the time between two deliveries of the spool."""
MOST_STEPS = 30
STEP_SECONDS = 0.002
QUERY = "select id, project_id, key_id, model, prompt_tokens, completion_tokens from usage where kind = 'completion'"

Booked = tuple[str, str, int, int]
"""Project, model, prompt tokens and completion tokens."""


class Replica(Upstream):
    """Answers with vLLM's bytes and its ids; what each answer costs follows from the request's id alone."""

    async def usual(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        name = request.headers[REQUEST_ID_HEADER]
        if body.get("stream"):
            return await self.stream(request, self._events(name, body["model"]), STEP_SECONDS)
        await asyncio.sleep(STEP_SECONDS)
        whole = named(CHAT_WHOLE, body["model"]).replace(b"req_0", name.encode())
        return web.Response(body=_counted(whole, *cost(name)), content_type="application/json")

    def _events(self, name: str, model: str) -> Iterator[bytes]:
        prompt, completion = cost(name)
        head, step, *_, counts, done = (named(event, model).replace(b"req_0", name.encode()) for event in CHAT_COUNTED)
        yield _counted(head, prompt, 0)
        for number in range(1, completion + 1):
            yield _counted(step, prompt, number)
        yield _counted(counts, prompt, completion)
        yield done


def cost(request_id: str) -> tuple[int, int]:
    chance = random.Random(request_id)
    return chance.randint(1, 900), chance.randint(1, MOST_STEPS)


def _counted(data: bytes, prompt: int, completion: int) -> bytes:
    before, mark, after = data.partition(b'"usage":{')
    rest = after[after.index(b'"completion_tokens":') :].partition(b":")[2].lstrip(b"0123456789")
    counts = f'"prompt_tokens":{prompt},"total_tokens":{prompt + completion},"completion_tokens":{completion}'
    return before + mark + counts.encode() + rest


@dataclass
class Client:
    """Asks one thing after the other, whole and streamed in turn, and remembers what it was told."""

    url: str
    tenant: Tenant
    stop: threading.Event
    told: dict[str, Booked] = field(default_factory=dict[str, Booked])
    """What an answer said that it cost, by the answer's id in the ledger."""
    whole: set[str] = field(default_factory=set[str])
    """Ids of answers that came to their end."""
    begun: set[str] = field(default_factory=set[str])
    refusals: list[str] = field(default_factory=list[str])

    def run(self) -> None:
        headers = {"authorization": f"Bearer {self.tenant.key}"}
        with httpx2.Client(base_url=f"{self.url}/v1", headers=headers, timeout=20) as http:
            asked = 0
            while not self.stop.is_set():
                asked += 1
                model = self.tenant.model if asked % 3 else BASE
                body = {"model": model, "messages": [{"role": "user", "content": f"question {asked}"}]}
                try:
                    self._ask(http, body, stream=asked % 2 == 0)
                except httpx2.TransportError:
                    time.sleep(0.05)

    def _ask(self, http: httpx2.Client, body: dict[str, Any], *, stream: bool) -> None:
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        with http.stream("POST", "/chat/completions", json=body | options) as answer:
            if answer.status_code != 200:
                answer.read()
                self.refusals.append(answer.text)
                time.sleep(0.05)
            elif not stream:
                answer.read()
                self._note(answer.json(), body["model"])
                self.whole.add(_ledger_id(answer.json()))
            else:
                self._read(answer, body["model"])

    def _read(self, answer: httpx2.Response, model: str) -> None:
        last = ""
        for line in answer.iter_lines():
            word = line.removeprefix("data: ")
            if word == "[DONE]":
                self.whole.add(last)
            elif word:
                event = json.loads(word)
                assert "error" not in event, event
                last = _ledger_id(event)
                self._note(event, model)

    def _note(self, said: dict[str, Any], model: str) -> None:
        name, usage = _ledger_id(said), said.get("usage")
        self.begun.add(name)
        if usage:
            assert said["model"] == model
            self.told[name] = (self.tenant.project, model, usage["prompt_tokens"], usage["completion_tokens"])


def _ledger_id(said: dict[str, Any]) -> str:
    return said["id"].removeprefix("chatcmpl-")


async def announced(stage: Stage, replica: Replica) -> None:
    base = stage.resources.settings.base_models[0]
    beat = ReplicaHeartbeat(
        url=replica.url, api_key=replica.api_key, base_model=base.name, base_fingerprint=base.fingerprint,
        state="ready", max_loras=4, max_lora_rank=64, context_length=1024,
    )  # fmt: skip
    async with stage.resources.database.control() as session:
        await announce(session, "replica", beat)


def kill_under_traffic(settings: ServiceSettings, clients: list[Client]) -> None:
    """ROUNDS services, one after the other; the last one is left alone until the ledger has everything."""
    chance, context, stop = random.Random(11), forks(), clients[0].stop
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    try:
        for _ in range(ROUNDS):
            with serving(context, settings):
                before = _answers(clients)
                wait_until(lambda: _answers(clients) > before, PATIENT_SECONDS, "an answer")  # noqa: B023
                time.sleep(chance.uniform(0, MOST_SECONDS))
    finally:
        stop.set()
        with serving(context, settings):
            for thread in threads:
                thread.join(PATIENT_SECONDS)
                assert not thread.is_alive()
            wait_until(lambda: not _segments(settings.spool_dir), PATIENT_SECONDS, "the spool is empty")


def _answers(clients: list[Client]) -> int:
    return sum(len(client.whole) for client in clients)


def _segments(folder: Path) -> list[Path]:
    return list(folder.glob("*.jsonl"))


@pytest.mark.timeout(60 + 30 * ROUNDS)
async def test_the_ledger_holds_what_clients_were_told(service_settings: ServiceSettings) -> None:
    settings = service_settings.model_copy(update={"replica_ttl_seconds": 36_000.0})
    replica, stop, url = Replica(free_port()), threading.Event(), f"http://127.0.0.1:{settings.port}"
    replica.start()
    try:
        async with open_stage(settings) as stage:
            tenants = [await make_tenant(stage) for _ in range(TENANTS)]
            await announced(stage, replica)
            clients = [Client(url, tenant, stop) for tenant in tenants for _ in range(CLIENTS_OF_EACH)]
            await asyncio.to_thread(kill_under_traffic, settings, clients)
            rows = await stage.rows(QUERY)
    finally:
        replica.stop()
    check(clients, rows)
    assert not (settings.spool_dir / REJECTED).exists()


def check(clients: list[Client], rows: Any) -> None:
    """Answer by answer, then in sum for each tenant."""
    booked: dict[str, Booked] = {row.id: (row.project_id, row.model, *row[4:]) for row in rows}
    told = {name: cost for client in clients for name, cost in client.told.items()}
    whole = {name for client in clients for name in client.whole}
    begun = {name for client in clients for name in client.begun}
    unseen = {name: entry for name, entry in booked.items() if name not in whole}
    summary = {
        "kills": ROUNDS,
        "answers": len(whole),
        "tokens_told": _tokens(told[name] for name in whole),
        "tokens_booked_for_them": _tokens(booked[name] for name in whole & booked.keys()),
        "lost": len(whole - booked.keys()),
        "wrong": sum(booked[name] != told[name] for name in whole & booked.keys()),
        "rows": len(rows),
        "rows_of_answers_that_a_kill_cut_off": len(unseen),
        "answers_cut_off_and_not_booked": len((begun - whole) - booked.keys()),
        "refused": dict(Counter(json.loads(text)["error"]["code"] for client in clients for text in client.refusals)),
    }
    summary["difference"] = summary["tokens_told"] - summary["tokens_booked_for_them"]
    print(json.dumps(summary))
    assert len(rows) == len(booked)
    assert {name: booked.get(name) for name in whole} == {name: told[name] for name in whole}
    # Also a count that came without the end of its stream was booked before it was sent.
    assert {name: told[name] for name in told if _is_final(name, told[name])}.items() <= booked.items()
    # What no client has seen the end of is what the replica made for that request, and no more.
    assert all(_is_final(name, entry) for name, entry in unseen.items())
    assert summary["difference"] == 0
    assert summary["refused"] == {}
    assert len(whole) > ROUNDS


def _is_final(name: str, entry: Booked) -> bool:
    return entry[2:] == cost(name)


def _tokens(entries: Any) -> int:
    return sum(prompt + completion for _, _, prompt, completion in entries)
