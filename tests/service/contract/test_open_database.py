"""The suite would notice if row-level security were off: in a database that lets everyone see all rows, ids leak."""

import asyncio

from deploy.local import postgres
from tests.service.conftest import Service
from tests.service.contract.conftest import Tenant
from tests.service.contract.matrix import leaks, places


def test_without_row_level_security_the_matrix_fails(
    service: Service, tenants: tuple[Tenant, Tenant], postgres_server: postgres.Postgres, database_name: str
) -> None:
    asked = places()
    assert [place for place in asked if place.method == "GET" and leaks(service.url, *tenants, place)] == []
    asyncio.run(_open_to_everyone(postgres_server, database_name))
    leaking = {place.kind for place in asked if leaks(service.url, *tenants, place)}
    # Queries of other things name the project too, so that only both failing together would show them.
    assert leaking >= {"file", "upload"}


async def _open_to_everyone(server: postgres.Postgres, database: str) -> None:
    """A policy beside the others that lets the tenants' role see all rows; policies add up."""
    connection = await server.connect("postgres", database)
    try:
        tables = await connection.fetch("select relname from pg_class where relforcerowsecurity")
        assert tables
        for table in tables:
            await connection.execute(
                f'create policy everything on "{table["relname"]}" to weft_api using (true) with check (true)'
            )
    finally:
        await connection.close()
