"""A model that comes or goes is so for every gateway within a second, also where the word of it is lost."""

import asyncio
import time

import httpx2
import pytest

from deploy.local.postgres import Postgres
from service.adapters.registry import retire
from service.settings import ServiceSettings
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.gateway.conftest import Tenant, chat, make_tenant
from tests.service.gateway.upstream import Upstream
from tests.service.stage import Stage


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    # Whatever is seen here in time is not seen because a cache has run out.
    return service_settings.model_copy(update={"cache_seconds": 600.0})


@pytest.fixture
def known(service: Service, stage: Stage, upstream: Upstream) -> Tenant:
    """A tenant whose model this gateway has served and remembers."""
    made = service.call(make_tenant(stage))
    assert ask(service, made) == 200
    return made


def ask(service: Service, tenant: Tenant) -> int:
    headers = {"authorization": f"Bearer {tenant.key}"}
    return httpx2.post(
        f"{service.url}/v1/chat/completions", json=chat(tenant.model), headers=headers, timeout=10
    ).status_code


def seen(service: Service, tenant: Tenant) -> float:
    started = time.monotonic()
    wait_until(lambda: ask(service, tenant) == 404, seconds=5, what="the deletion is seen")
    return time.monotonic() - started


def sql(server: Postgres, database: str, *statements: str) -> None:
    async def run() -> None:
        connection = await server.connect("postgres", database)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


def delete_silently(model: str) -> str:
    """No notification goes with this."""
    return f"update models set deleted_at = now() where name = '{model}'"


def test_a_model_deleted_by_another_process_is_gone(service: Service, stage: Stage, known: Tenant) -> None:
    async def delete() -> None:
        async with stage.resources.database.tenant(known.project) as session:
            await retire(session, known.project, known.model)

    service.call(delete())
    assert seen(service, known) < 1


def test_a_deletion_whose_word_was_lost_with_the_connection_is_seen(
    service: Service, known: Tenant, postgres_server: Postgres, database_name: str
) -> None:
    kill = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database_name}'"
    sql(postgres_server, "postgres", kill)
    sql(postgres_server, database_name, delete_silently(known.model))
    assert seen(service, known) < 1


def test_where_nobody_can_listen_the_database_is_asked_instead(
    service: Service, known: Tenant, postgres_server: Postgres, database_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused() -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(service.resources.notifications, "_listen", refused)
    kill = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database_name}'"
    sql(postgres_server, "postgres", kill)
    time.sleep(1)
    assert ask(service, known) == 200
    sql(postgres_server, database_name, delete_silently(known.model))
    assert seen(service, known) < 1


def test_a_model_is_there_the_moment_it_is_published(service: Service, stage: Stage, upstream: Upstream) -> None:
    made = service.call(make_tenant(stage))
    unknown = Tenant(made.project, made.key, made.model + "x", made.adapter)
    assert ask(service, unknown) == 404
    assert ask(service, made) == 200
