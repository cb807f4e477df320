"""What keeps tenants apart in the database, and that the service does not start without it."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine

from deploy.local.postgres import Postgres
from service.app import create_app, lifespan
from service.contracts.ids import ProjectId
from service.db import SCHEMA, Base, Database, UnsafeDatabase
from service.settings import ServiceSettings

PROJECTS = (ProjectId("proj_one"), ProjectId("proj_two"))


@pytest.fixture(scope="module")
async def database(service_settings: ServiceSettings) -> AsyncIterator[Database]:
    """Two projects with one file each."""
    database = Database(service_settings)
    async with database.control() as session:
        await session.execute(text("insert into organizations (id, name) values ('org-a', 'a')"))
        for project in PROJECTS:
            await session.execute(
                text("insert into projects (id, organization_id, name) values (:id, 'org-a', :id)"), {"id": project}
            )
    for project in PROJECTS:
        async with database.tenant(project) as session:
            await session.execute(
                text(
                    "insert into files (id, project_id, filename, purpose, bytes, sha256, status)"
                    " values ('file-' || :id, :id, 'f', 'batch', 1, 'x', 'processed')"
                ),
                {"id": project},
            )
    yield database
    await database.close()


async def test_a_tenant_sees_its_own_rows_only(database: Database) -> None:
    for project in PROJECTS:
        async with database.tenant(project) as session:
            assert (await session.scalars(text("select project_id from files"))).all() == [project]
            assert (await session.scalars(text("select id from projects"))).all() == [project]
            others = await session.execute(
                text("update files set filename = 'x' where project_id <> :own"), {"own": project}
            )
            assert others.rowcount == 0  # type: ignore[attr-defined]


async def test_a_tenant_cannot_write_into_another_project(database: Database) -> None:
    insert = text(
        "insert into files (id, project_id, filename, purpose, bytes, sha256, status)"
        " values ('file-x', 'proj_two', 'f', 'batch', 1, 'x', 'processed')"
    )
    with pytest.raises(ProgrammingError, match="row-level security"):
        async with database.tenant(PROJECTS[0]) as session:
            await session.execute(insert)


@pytest.mark.parametrize(
    "statement",
    [
        "select * from api_keys",
        "select * from replicas",
        "delete from files",
        "insert into usage (id, project_id, kind, model) values ('u', 'proj_one', 'completion', 'm')",
        "update projects set weight = 100",
        "update projects set monthly_budget_cents = null",
        "select * from admin_keys",
        "select * from audit_logs",
        "update audit_logs set type = 'x'",
        "insert into audit_logs (id, project_id, type, actor, subject) values ('a', 'proj_two', 'x', '{}', 'y')",
        "alter table files disable row level security",
        "set role weft_owner",
        "set session authorization weft_control",
        "create table mine (a int)",
    ],
)
async def test_the_tenants_role_has_no_other_rights(database: Database, statement: str) -> None:
    with pytest.raises(ProgrammingError):
        async with database.tenant(PROJECTS[0]) as session:
            await session.execute(text(statement))


@pytest.mark.parametrize("statement", ["update audit_logs set type = 'x'", "delete from audit_logs"])
async def test_nobody_can_change_the_audit_log(database: Database, statement: str) -> None:
    with pytest.raises(ProgrammingError, match="permission denied"):
        async with database.control() as session:
            await session.execute(text(statement))


async def test_without_a_project_nothing_is_visible(service_settings: ServiceSettings, database: Database) -> None:
    engine = create_async_engine(service_settings.database_url.get_secret_value(), pool_size=1)
    async with engine.connect() as connection:
        with pytest.raises(ProgrammingError, match=r"app\.project"):
            await connection.execute(text("select * from files"))
    async with engine.begin() as connection:
        await connection.execute(text("select set_config('app.project', 'proj_one', true)"))
    async with engine.connect() as connection:
        # The same connection: the last transaction's project is gone from it.
        assert (await connection.execute(text("select * from files"))).all() == []
    await engine.dispose()


async def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    with contextlib.suppress(ZeroDivisionError):
        async with database.tenant(PROJECTS[0]) as session:
            await session.execute(text("update files set filename = 'changed'"))
            raise ZeroDivisionError
    async with database.tenant(PROJECTS[0]) as session:
        assert (await session.scalars(text("select filename from files"))).all() == ["f"]


@contextlib.asynccontextmanager
async def changed(server: Postgres, name: str, there: str, back: str) -> AsyncIterator[None]:
    connection: Any = await server.connect("postgres", name)
    try:
        await connection.execute(there)
        yield
    finally:
        await connection.execute(back)
        await connection.close()


async def starts(settings: ServiceSettings) -> None:
    async with lifespan(create_app(settings)):
        pass


async def test_the_service_starts_over_a_sound_database(service_settings: ServiceSettings) -> None:
    await starts(service_settings)


@pytest.mark.parametrize("field", ["database_url", "control_database_url"])
async def test_a_superuser_is_refused(
    service_settings: ServiceSettings, postgres_server: Postgres, database_name: str, field: str
) -> None:
    url = SecretStr(postgres_server.url("postgres", database_name))
    with pytest.raises(UnsafeDatabase, match="bypass row-level security"):
        await starts(service_settings.model_copy(update={field: url}))


@pytest.mark.parametrize(
    "table",
    [
        "projects",
        "api_keys",
        "files",
        "jobs",
        "job_events",
        "adapters",
        "models",
        "usage",
        "recorded_answers",
        "service_accounts",
        "rate_states",
        "audit_logs",
    ],
)
@pytest.mark.parametrize("switch", ["no force row level security", "disable row level security"])
async def test_a_table_that_is_open_is_refused(
    service_settings: ServiceSettings, postgres_server: Postgres, database_name: str, table: str, switch: str
) -> None:
    on = f"alter table {table} enable row level security, force row level security"
    async with changed(postgres_server, database_name, f"alter table {table} {switch}", on):
        with pytest.raises(UnsafeDatabase, match=table):
            await Database(service_settings).verify()


async def test_another_schema_is_refused(
    service_settings: ServiceSettings, postgres_server: Postgres, database_name: str
) -> None:
    back = f"update alembic_version set version_num = '{SCHEMA}'"
    async with changed(postgres_server, database_name, "update alembic_version set version_num = '0000'", back):
        with pytest.raises(UnsafeDatabase, match="run the migrations"):
            await Database(service_settings).verify()


def test_the_schema_that_the_service_wants_is_the_newest(request: pytest.FixtureRequest) -> None:
    config = Config(toml_file=str(request.config.rootpath / "pyproject.toml"))
    config.set_main_option("script_location", str(request.config.rootpath / "service" / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA


async def test_models_are_what_the_migrations_make(postgres_server: Postgres, database_name: str) -> None:
    """Tables, columns, types and references. Indexes, checks and uniques are the migrations' alone."""
    engine = create_async_engine(postgres_server.url("weft_owner", database_name))

    def differences(connection: Any) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, Base.metadata)

    async with engine.connect() as connection:
        found = await connection.run_sync(differences)
    await engine.dispose()
    schema_only = {"remove_index", "remove_constraint"}
    assert [change for change in found if not (isinstance(change, tuple) and change[0] in schema_only)] == []


async def test_unavailable_errors_are_told_from_bugs(database: Database) -> None:
    with pytest.raises(ProgrammingError):
        async with database.control() as session:
            await session.execute(text("select nonsense"))
