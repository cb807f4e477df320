"""Kills of the service at random moments of job creation: what clients were told exists, and nothing exists twice.

CHAOS_ROUNDS kills, few in the suite; `make chaos-service` runs many and prints what it saw as JSON.
"""

import itertools
import json
import os
import random
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from service.settings import ServiceSettings
from tests.chaos.killed import PATIENT_SECONDS, forks, serving
from tests.conftest import wait_until
from tests.service.stage import open_stage

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "6"))
CLIENTS = 6
MOST_ANSWERS = 8
MOST_SECONDS = 0.03
"""A service is killed so long after one of its first answers, which is about the time that a creation takes."""


@dataclass
class Client:
    """Creates one job after the other. Each is asked for until there is an answer, by key or as stock clients do."""

    url: str
    headers: dict[str, str]
    body: dict[str, Any]
    seeds: "itertools.count[int]"
    keyed: bool
    stop: threading.Event
    answered: dict[int, str] = field(default_factory=dict[int, str])
    retries: int = 0
    replayed: int = 0
    refusals: list[str] = field(default_factory=list[str])

    def run(self) -> None:
        with httpx2.Client(base_url=self.url, headers=self.headers, timeout=20) as http:
            while not self.stop.is_set():
                seed = next(self.seeds)
                self.answered[seed] = self._create(http, seed)

    def _create(self, http: httpx2.Client, seed: int) -> str:
        for attempt in itertools.count():
            key = {"idempotency-key": f"job {seed}"} if self.keyed else {}
            headers = {"x-stainless-retry-count": str(attempt), **key}
            with suppress(httpx2.TransportError):
                answer = http.post("/v1/fine_tuning/jobs", json={**self.body, "seed": seed}, headers=headers)
                if answer.status_code == 200:
                    self.replayed += "idempotent-replayed" in answer.headers
                    return answer.json()["id"]
                if answer.status_code not in (409, 503):
                    self.refusals.append(answer.text)
            self.retries += 1
            time.sleep(0.1)
        raise AssertionError("counting has no end")


def answers(clients: list[Client]) -> int:
    return sum(len(client.answered) for client in clients)


@pytest.mark.timeout(60 + 30 * ROUNDS)
async def test_jobs_are_neither_lost_nor_doubled_when_the_service_is_killed(service_settings: ServiceSettings) -> None:
    # Nothing trains them here.
    service_settings = service_settings.model_copy(update={"max_queued_jobs": 1_000_000})
    context = forks()
    chance, stop, seeds = random.Random(7), threading.Event(), itertools.count(1)
    async with open_stage(service_settings) as stage:
        project = await stage.project()
        headers = {"authorization": f"Bearer {await stage.key(project)}"}
        body = {"model": "weft-tiny", "training_file": await stage.file(project)}
        url = f"http://127.0.0.1:{service_settings.port}"
        clients = [Client(url, headers, body, seeds, bool(number % 2), stop) for number in range(CLIENTS)]
        threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
        for thread in threads:
            thread.start()
        try:
            for _ in range(ROUNDS):
                with serving(context, service_settings):
                    wanted = answers(clients) + chance.randint(1, MOST_ANSWERS)
                    wait_until(lambda: answers(clients) >= wanted, PATIENT_SECONDS, "answers")  # noqa: B023
                    time.sleep(chance.uniform(0, MOST_SECONDS))
        finally:
            stop.set()
            with serving(context, service_settings):
                for thread in threads:
                    thread.join(PATIENT_SECONDS)
                    assert not thread.is_alive()
        query = "select id, (spec->>'seed')::int from jobs where project_id = :project"
        found = await stage.rows(query, project=project)
    told = {seed: job for client in clients for seed, job in client.answered.items()}
    lost, doubled = set(told.values()) - {job for job, _ in found}, len(found) - len({seed for _, seed in found})
    counted = {"kills": ROUNDS, "jobs": len(found), "lost": len(lost), "doubled": doubled}
    summary = counted | {
        "retries": sum(client.retries for client in clients),
        "replayed": sum(client.replayed for client in clients),
    }
    print(json.dumps(summary))
    assert [refusal for client in clients for refusal in client.refusals] == []
    assert {seed: job for job, seed in found} == told
    assert (summary["lost"], summary["doubled"]) == (0, 0)
    assert summary["retries"] >= ROUNDS
