"""An evaluation whose process is killed in the middle of it: another one ends it, and every answer is booked once."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from aiohttp import web

from service.contracts.ids import ProjectId
from service.registry import versions
from service.registry.versions import Source
from service.settings import ServiceSettings
from tests.conftest import free_port, wait_until
from tests.service.batches.test_kills import Counting
from tests.service.gateway.registered import NAME, registrable
from tests.service.gateway.upstream import Upstream
from tests.service.stage import open_stage
from tests.service.test_app_process import serving, variables

EXAMPLES = 60


class Slow(Counting):
    """A replica whose answers are right, after a while, for all but the `bad` adapter."""

    bad = ""

    def __init__(self) -> None:
        self.replica = Upstream(free_port())
        self.replica.script = self._answer

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.1)
        text = b"5" if body["model"] == self.bad else b"4"
        answer = await self.replica.usual(request, body)
        assert isinstance(answer, web.Response)
        assert isinstance(answer.body, bytes)
        return web.Response(body=answer.body.replace(b'He said \\"usage\\":{}!', text), content_type="application/json")


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    slow.replica.start()
    yield slow
    slow.replica.stop()


async def _prepared(settings: ServiceSettings) -> tuple[ProjectId, str, str]:
    """A project whose adapter stands for version 1, and whose job has just made version 2; with its key."""
    async with open_stage(settings) as stage:
        project = await stage.project()
        _, adapter = await registrable(stage, project)
        async with stage.resources.database.control() as session:
            source = Source("model", "first")
            await versions.add(
                session,
                project,
                NAME,
                source,
                artifact=adapter,
                provenance={},
                create_missing=True,  # type: ignore[arg-type]
            )
        gate = {"adapter": NAME, "alias": "default", "evaluation": {"grader": {"type": "exact_match"}}}
        held_out = await stage.file(project, examples=EXAMPLES)
        job = await stage.job(project, validation_file=held_out, on_success=gate)
        await stage.rows("update jobs set not_before = now() + interval '1 day' where id <> :job returning id", job=job)
        await stage.succeed(await stage.claimed())
        return project, adapter, await stage.key(project)


async def _seen(settings: ServiceSettings, query: str, **parameters: Any) -> list[Any]:
    async with open_stage(settings) as stage:
        return [tuple(row) for row in await stage.rows(query, **parameters)]


def test_a_killed_process_leaves_an_evaluation_that_is_made_once(
    service_settings: ServiceSettings, slow: Slow, tmp_path: Path
) -> None:
    project, slow.bad, key = asyncio.run(_prepared(service_settings))
    headers = {"authorization": f"Bearer {key}"}

    def scored() -> int:
        return asyncio.run(_seen(service_settings, "select count(*) from evaluation_scores"))[0][0]

    environment = variables(service_settings)
    with serving(environment, tmp_path / "log-1"):
        slow.beat(service_settings)
        wait_until(lambda: scored() > 0, 60, what="scores")
    assert 0 < scored() < 2 * EXAMPLES
    asyncio.run(_seen(service_settings, "update evaluations set held_until = now() - interval '1 s' returning id"))
    with serving(environment, tmp_path / "log-2"), httpx2.Client(headers=headers, timeout=20) as http:
        slow.beat(service_settings)
        place = f"http://127.0.0.1:{service_settings.port}/v1/adapters/{NAME}"

        def found() -> dict[str, Any]:
            return http.get(f"{place}/evaluations").json()["data"][0]

        wait_until(lambda: found()["status"] == "succeeded", 60, what="the evaluation ended")
        assert (found()["score"], found()["current_score"], found()["promotion"]["promoted"]) == (1.0, 0.0, True)
        assert len(found()["results"]["lines"]) == EXAMPLES
        assert http.get(f"{place}/aliases/default").json()["revision"] == 2
    query = "select model, count(*) from usage where project_id = :project group by model, kind order by model"
    booked = asyncio.run(_seen(service_settings, query, project=project))
    assert [row for row in booked if "@" in row[0]] == [(f"{NAME}@v1", EXAMPLES), (f"{NAME}@v2", EXAMPLES)]
