"""Kills of the gateway at random moments of traffic: whatever a client was told it used is in the ledger, once.

CHAOS_ROUNDS kills, few in the suite; `make chaos-usage` runs many and prints what it saw as JSON. An answer's `id`
ends in its id in the ledger, as vLLM makes it, so the two sides are compared answer by answer, not only in their sums.
Chat, completions and responses, whole and streamed, of models and of the base.
"""

import asyncio
import json
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from service.contracts.replica import ReplicaHeartbeat
from service.replicas.register import announce
from service.settings import ServiceSettings
from service.usage.spool import REJECTED
from tests.chaos.killed import PATIENT_SECONDS, forks, serving
from tests.chaos.metered import ROUTES, Booked, Client, Replica, cost
from tests.conftest import free_port, wait_until
from tests.service.gateway.conftest import make_tenant
from tests.service.stage import Stage, open_stage

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "3"))
TENANTS = 3
CLIENTS_OF_EACH = 3
MOST_SECONDS = 1.5
"""A service is killed so long after its first answers: longer than the time between two deliveries of the spool."""
QUERY = "select id, project_id, key_id, model, prompt_tokens, completion_tokens from usage where kind = 'completion'"


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
    routes = {name: route for client in clients for name, route in client.whole.items()}
    whole = routes.keys()
    begun = {name for client in clients for name in client.begun}
    unseen = {name: entry for name, entry in booked.items() if name not in whole}
    summary = {
        "kills": ROUNDS,
        "answers": dict(Counter(routes.values())),
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
    assert set(routes.values()) == set(ROUTES)


def _is_final(name: str, entry: Booked) -> bool:
    return entry[2:] == cost(name)


def _tokens(entries: Any) -> int:
    return sum(prompt + completion for _, _, prompt, completion in entries)
