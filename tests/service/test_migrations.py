"""A database of an earlier release is brought to this one with its rows kept and usable."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from deploy.local import postgres
from deploy.local.postgres import Postgres
from service.contracts.ids import ProjectId
from service.db import Database
from service.jobs.listing import list_jobs
from service.jobs.models import JobRow
from service.listing import Cursor
from service.settings import ServiceSettings

OLD = """
insert into organizations (id, name) values ('org-a', 'a');
insert into projects (id, organization_id, name) values ('proj_a', 'org-a', 'a');
insert into files (id, project_id, filename, purpose, bytes, sha256, status, examples)
  values ('file-a', 'proj_a', 'train.jsonl', 'fine-tune', 1, 'x', 'processed', 10);
insert into jobs (id, project_id, status, model, spec, training_file, fine_tuned_model) values
  ('ftjob-done', 'proj_a', 'succeeded', 'weft-tiny', '{}', 'file-a', 'ft:weft-tiny:a::00000000'),
  ('ftjob-waiting', 'proj_a', 'queued', 'weft-tiny', '{}', 'file-a', null);
insert into adapters (id, project_id, job_id, epoch, step, manifest)
  values (repeat('0', 64), 'proj_a', 'ftjob-done', 1, 30, '{}');
insert into models (name, project_id, adapter_id, job_id, kind)
  values ('ft:weft-tiny:a::00000000', 'proj_a', repeat('0', 64), 'ftjob-done', 'final');
"""
COUNTS = {"files": 1, "jobs": 2, "adapters": 1, "models": 1}


@pytest_asyncio.fixture
async def upgraded(
    postgres_server: Postgres, service_settings: ServiceSettings, request: pytest.FixtureRequest
) -> AsyncIterator[Postgres]:
    """A server with a database `old` that was made and filled by 0001 and then migrated."""
    await _run(postgres_server, "postgres", "create database old owner weft_owner")
    try:
        await _alembic(postgres_server.url("weft_owner", "old"), "0001", request.config.rootpath)
        # As superuser: not even the owner of the tables may write past row-level security.
        await _run(postgres_server, "old", OLD)
        await postgres.migrate(postgres_server.url("weft_owner", "old"))
        yield postgres_server
    finally:
        await _run(postgres_server, "postgres", "drop database old with (force)")


async def test_rows_of_the_first_schema_stay_and_can_be_read(
    upgraded: Postgres, service_settings: ServiceSettings
) -> None:
    for table, count in COUNTS.items():
        assert (await _run(upgraded, "old", f"select count(*) from {table}"))[0][0] == count
    assert await _run(upgraded, "old", "select example_format from files") == [(None,)]
    urls = {
        "database_url": upgraded.url("weft_api", "old"),
        "control_database_url": upgraded.url("weft_control", "old"),
    }
    values = service_settings.model_dump() | urls
    database = Database(ServiceSettings.model_validate(values))
    try:
        await database.verify()
        async with database.tenant(ProjectId("proj_a")) as session:
            jobs = await list_jobs(session, Cursor(limit=10), None)
    finally:
        await database.close()
    assert sorted(_told(job) for job in jobs) == [
        ("ftjob-done", "ft:weft-tiny:a::00000000", None, []),
        ("ftjob-waiting", None, None, []),
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "update files set example_format = 'poems'",
        "update jobs set model_name = 'ft:weft-tiny:a::00000001'",
        "update models set kind = 'checkpoint'",
    ],
)
async def test_what_the_columns_cannot_hold_is_refused(upgraded: Postgres, statement: str) -> None:
    """An unknown format, one name for two jobs, a checkpoint model without an id."""
    with pytest.raises(Exception, match="violates"):
        await _run(upgraded, "old", statement)


def _told(job: JobRow) -> tuple[str, str | None, str | None, list[str]]:
    return job.id, job.fine_tuned_model, job.model_name, job.result_files


async def _run(server: Postgres, database: str, statement: str) -> Sequence[Any]:
    connection = await server.connect("postgres", database)
    try:
        if not statement.lstrip().startswith("select"):
            return await connection.execute(statement)
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


async def _alembic(url: str, revision: str, root: Any) -> None:
    argv = [sys.executable, "-m", "alembic", "-c", str(root / "pyproject.toml"), "-x", f"url={url}"]
    process = await asyncio.create_subprocess_exec(*argv, "upgrade", revision, cwd=root)
    assert await process.wait() == 0
