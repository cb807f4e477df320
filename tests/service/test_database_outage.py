"""The database goes and comes back: 503 with Retry-After meanwhile, nothing to restart afterwards.

The server is shared with other tests, so it is this module's own database that refuses connections.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2
import openai
import pytest

from deploy.local.postgres import Postgres
from tests.conftest import wait_until
from tests.service.conftest import Service


@contextmanager
def outage(server: Postgres, name: str) -> Iterator[None]:
    async def run(*statements: str) -> None:
        connection = await server.connect("postgres", "postgres")
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    kill = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
    asyncio.run(run(f'alter database "{name}" allow_connections false', kill))
    try:
        yield
    finally:
        asyncio.run(run(f'alter database "{name}" allow_connections true'))


def test_an_outage_is_a_503_and_passes(
    service: Service,
    admin: httpx2.Client,
    client: Callable[[str], openai.OpenAI],
    make_project: Callable[[str], tuple[str, str]],
    postgres_server: Postgres,
    database_name: str,
) -> None:
    project, key = make_project("outage")
    assert client(key).files.list().data == []
    with outage(postgres_server, database_name):
        for _ in range(3):
            response = admin.get(f"/organization/projects/{project}")
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert response.json()["error"]["code"] == "unavailable"
            assert response.json()["error"]["type"] == "server_error"
        with pytest.raises(openai.InternalServerError) as caught:
            client(key).files.list()
        assert caught.value.status_code == 503
        ready = httpx2.get(f"{service.url}/readyz")
        assert (ready.status_code, ready.json()["database"]) == (503, False)
        assert httpx2.get(f"{service.url}/healthz").status_code == 200
    assert admin.get(f"/organization/projects/{project}").status_code == 200
    assert client(key).files.list().data == []


def test_notifications_are_heard_again_after_an_outage(
    service: Service,
    admin: httpx2.Client,
    client: Callable[[str], openai.OpenAI],
    make_project: Callable[[str], tuple[str, str]],
    postgres_server: Postgres,
    database_name: str,
) -> None:
    project, key = make_project("deaf")
    woken: list[bool] = []
    service.resources.notifications.subscribe("replica", lambda: woken.append(True))
    with outage(postgres_server, database_name):
        pass
    # Whatever was said during the outage is lost, so every subscriber is woken once the connection is back.
    wait_until(lambda: bool(woken), what="subscribers woken after the outage")
    client(key).files.list()
    key_id = admin.get(f"/organization/projects/{project}/api_keys").json()["data"][0]["id"]
    admin.delete(f"/organization/projects/{project}/api_keys/{key_id}")

    def refused() -> bool:
        try:
            client(key).files.list()
        except openai.AuthenticationError:
            return True
        return False

    wait_until(refused, seconds=service.settings.cache_seconds / 2, what="the revocation heard")
