"""A batch whose process is killed again and again, or whose hold is taken away: each line is recorded once.

What was recorded is not asked again, and the ledger holds exactly what the output file says.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from aiohttp import web
from sqlalchemy import text

from service.contracts.ids import ProjectId
from service.settings import ServiceSettings
from tests.conftest import free_port, wait_until
from tests.service.batches.conftest import create, line, over, rows
from tests.service.gateway.conftest import BASE
from tests.service.gateway.upstream import Upstream
from tests.service.stage import open_stage
from tests.service.test_app_process import serving, variables

LINES = 240
KILLS = 3


class Counting:
    """A replica that takes its time and remembers how often it was asked what."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.replica = Upstream(free_port())
        self.replica.script = self._answer

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        self.asked[body["messages"][0]["content"]] += 1
        await asyncio.sleep(0.5)
        return await self.replica.usual(request, body)

    def beat(self, settings: ServiceSettings) -> None:
        base = settings.base_models[0]
        body = {
            "url": self.replica.url,
            "api_key": self.replica.api_key,
            "base_model": base.name,
            "base_fingerprint": base.fingerprint,
            "state": "ready",
            "max_loras": 4,
            "max_lora_rank": 64,
            "context_length": 1024,
        }
        headers = {"authorization": f"Bearer {settings.replica_token.get_secret_value()}"}
        url = f"http://127.0.0.1:{settings.port}/internal/replicas/replica-1"
        httpx2.put(url, json=body, headers=headers, timeout=10).raise_for_status()


@pytest.fixture
def counting() -> Iterator[Counting]:
    counting = Counting()
    counting.replica.start()
    yield counting
    counting.replica.stop()


async def _prepared(settings: ServiceSettings) -> tuple[ProjectId, str]:
    async with open_stage(settings) as stage:
        project = await stage.project()
        return project, await stage.key(project)


async def _seen(settings: ServiceSettings, query: str, **parameters: Any) -> list[Any]:
    async with open_stage(settings) as stage:
        return [tuple(row) for row in await stage.rows(query, **parameters)]


async def _let_go(settings: ServiceSettings, batch: str, epochs: int = 0) -> None:
    """Ends the hold now, as if its holder had been silent for the whole of it; or gives it to somebody else."""
    async with open_stage(settings) as stage, stage.resources.database.control() as session:
        change = "update batches set held_until = now() - interval '1 s', epoch = epoch + :epochs where id = :id"
        await session.execute(text(change), {"id": batch, "epochs": epochs})


def recorded(settings: ServiceSettings, batch: str) -> list[int]:
    query = "select unnest(lines) from batch_parts where batch_id = :batch"
    return [number for (number,) in asyncio.run(_seen(settings, query, batch=batch))]


def check(settings: ServiceSettings, sdk: openai.OpenAI, project: str, batch: str) -> None:
    """Everything is there once, and booked once."""
    done = over(sdk, batch, 60)
    assert done.status == "completed"
    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (LINES, 0)
    answers = rows(sdk, done.output_file_id)
    assert set(answers) == {f"r{n}" for n in range(LINES)}
    query = "select id, prompt_tokens, completion_tokens from usage where project_id = :project"
    booked = asyncio.run(_seen(settings, query, project=project))
    told = [each["response"] for each in answers.values()]
    used = [(each["body"]["usage"]["prompt_tokens"], each["body"]["usage"]["completion_tokens"]) for each in told]
    assert sorted(booked) == sorted((each["request_id"], *pair) for each, pair in zip(told, used, strict=True))


def test_killed_processes_lose_no_line_and_double_none(
    service_settings: ServiceSettings, counting: Counting, tmp_path: Path
) -> None:
    project, key = asyncio.run(_prepared(service_settings))
    environment, chance = variables(service_settings), random.Random(7)
    settled: dict[str, int] = {}
    with openai.OpenAI(api_key=key, base_url=f"http://127.0.0.1:{service_settings.port}/v1") as sdk:
        batch = ""
        for life in range(KILLS + 1):
            with serving(environment, tmp_path / f"log-{life}"):
                counting.beat(service_settings)
                batch = batch or create(sdk, [line(n, BASE) for n in range(LINES)]).id
                asyncio.run(_let_go(service_settings, batch))
                wait_until(lambda: len(recorded(service_settings, batch)) > len(settled), what="progress")  # noqa: B023
                if life == KILLS:
                    # While its holder works on, somebody else takes the batch.
                    asyncio.run(_let_go(service_settings, batch, epochs=1))
                    check(service_settings, sdk, project, batch)
                else:
                    time.sleep(chance.uniform(0, 1.5))
            assert {name: counting.asked[name] for name in settled} == settled, "a recorded line was asked again"
            if life < KILLS:
                lines = recorded(service_settings, batch)
                assert len(lines) == len(set(lines)) < LINES
                settled = {f"request {number - 1}": counting.asked[f"request {number - 1}"] for number in lines}
