"""The suite notices row-level security that is off: rows of others show in every table, and the matrix finds leaks."""

import asyncio
from typing import Any

from sqlalchemy import text

from deploy.local import postgres
from tests.service.conftest import Service
from tests.service.contract.conftest import Tenant
from tests.service.contract.matrix import leaks, places

READABLE = text(
    """
    select c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid
    where a.attname = 'project_id' and c.relkind in ('r', 'p') and has_table_privilege(c.oid, 'select')
    """
)


def test_without_row_level_security_the_suite_fails(
    service: Service, tenants: tuple[Tenant, Tenant], postgres_server: postgres.Postgres, database_name: str
) -> None:
    asked = places()
    hidden = service.call(_foreign_rows(service, tenants))
    assert [place for place in asked if place.method == "GET" and leaks(service.url, *tenants, place)] == []
    assert set(hidden.values()) == {0}
    asyncio.run(_switch_off(postgres_server, database_name))
    seen = service.call(_foreign_rows(service, tenants))
    assert {table for table in seen if seen[table]} >= TABLES
    leaking = {place.kind for place in asked if leaks(service.url, *tenants, place)}
    # Queries of other things name the project too, so that only both failing together would show them.
    assert leaking >= {"file", "upload"}


TABLES = frozenset(
    {
        "adapter_aliases", "adapter_versions", "adapters", "batches", "evaluations", "files", "job_events", "jobs",
        "models", "upload_parts", "uploads", "webhook_deliveries", "webhook_endpoints",
    }
)  # fmt: skip
"""Those in which every tenant of the matrix has something."""


async def _foreign_rows(service: Service, tenants: tuple[Tenant, Tenant]) -> dict[str, int]:
    """How many of the second tenant's rows the first one's transactions see, by table."""
    asks, owns = tenants
    database: Any = service.resources.database
    async with database.tenant(asks.project) as session:
        tables = (await session.scalars(READABLE)).all()
        counted = {table: text(f'select count(*) from "{table}" where project_id = :project') for table in tables}
        return {table: await session.scalar(query, {"project": owns.project}) for table, query in counted.items()}


async def _switch_off(server: postgres.Postgres, database: str) -> None:
    connection = await server.connect("postgres", database)
    try:
        tables = await connection.fetch("select relname from pg_class where relforcerowsecurity")
        assert tables
        for table in tables:
            await connection.execute(f'alter table "{table["relname"]}" disable row level security')
    finally:
        await connection.close()
