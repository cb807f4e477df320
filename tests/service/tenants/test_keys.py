"""The form of a key, and how long a process trusts one."""

import asyncio
import string
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from service.app import create_app, lifespan
from service.resources import Resources
from service.settings import ServiceSettings
from service.tenants.auth import KeyCache
from service.tenants.issue import issue_key, revoke_key
from service.tenants.keys import PREFIX, hash_key, make_key, public_id_of, redact
from service.tenants.models import ProjectRow
from service.tenants.projects import create_project


def test_a_key_has_the_form_that_scanners_know() -> None:
    key = make_key()
    assert key.startswith(PREFIX)
    assert len(key) == len(PREFIX) + 61
    assert set(key.removeprefix(PREFIX)) <= set(string.ascii_letters + string.digits)
    assert make_key() != key


def test_a_typing_error_is_seen_without_the_database() -> None:
    key = make_key()
    assert public_id_of(key) == key[len(PREFIX) : len(PREFIX) + 12]
    for place in range(len(key)):
        other = "a" if key[place] != "a" else "b"
        assert public_id_of(key[:place] + other + key[place + 1 :]) is None
    assert public_id_of(key + "a") is None
    assert public_id_of(key[:-1]) is None
    assert public_id_of("") is None
    assert public_id_of(key[:-1] + "é") is None


def test_what_is_shown_of_a_key_does_not_open_anything() -> None:
    key = make_key()
    assert len(redact(key)) == len(PREFIX) + 9
    assert key[len(PREFIX) + 4 : -4] not in redact(key)
    assert len(hash_key(key)) == 32


@pytest.fixture(scope="module")
async def resources(service_settings: ServiceSettings) -> AsyncIterator[Resources]:
    app = create_app(service_settings)
    async with lifespan(app):
        yield app.state.resources


@pytest.fixture
async def project(resources: Resources, request: pytest.FixtureRequest) -> ProjectRow:
    async with resources.database.control() as session:
        return await create_project(session, resources.settings.organization_name, request.node.name)


async def test_the_database_holds_no_key(resources: Resources, project: ProjectRow) -> None:
    async with resources.database.control() as session:
        row, key = await issue_key(session, project, "k")
        stored = str((await session.execute(text("select * from api_keys where id = :id"), {"id": row.id})).one())
    assert key not in stored
    assert key[len(PREFIX) + 12 : -10] not in stored


async def test_a_revoked_key_dies_without_any_notification(resources: Resources, project: ProjectRow) -> None:
    """A cache that hears nothing, as behind a connection pooler: its own clock is what ends the key."""
    deaf = KeyCache(resources.database, seconds=2.0)
    async with resources.database.control() as session:
        row, key = await issue_key(session, project, "k")
    found = await deaf.find(key)
    assert found is not None
    assert found.project_id == project.id
    async with resources.database.control() as session:
        await revoke_key(session, project, row.id)
    assert await deaf.find(key) is not None, "the cache was to be deaf"
    await asyncio.sleep(2.0)
    assert await deaf.find(key) is None


async def test_a_key_is_trusted_for_ten_seconds_at_most() -> None:
    assert ServiceSettings.model_fields["cache_seconds"].default <= 10


async def test_a_lookup_that_began_before_the_change_is_not_remembered(
    resources: Resources, project: ProjectRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = KeyCache(resources.database, seconds=60)
    async with resources.database.control() as session:
        row, key = await issue_key(session, project, "k")
    read, go_on = asyncio.Event(), asyncio.Event()
    load = cache._load

    async def slow(public_id: str, digest: bytes) -> object:
        found = await load(public_id, digest)
        read.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(cache, "_load", slow)
    looking = asyncio.create_task(cache.find(key))
    await read.wait()
    async with resources.database.control() as session:
        await revoke_key(session, project, row.id)
    cache.forget()
    go_on.set()
    await looking
    assert await cache.find(key) is None


async def test_many_requests_at_once_make_one_lookup(
    resources: Resources, project: ProjectRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = KeyCache(resources.database, seconds=60)
    async with resources.database.control() as session:
        _, key = await issue_key(session, project, "k")
    looks = 0
    load = cache._load

    async def counted(public_id: str, digest: bytes) -> object:
        nonlocal looks
        looks += 1
        return await load(public_id, digest)

    monkeypatch.setattr(cache, "_load", counted)
    waiting = [asyncio.create_task(cache.find(key)) for _ in range(50)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert looks == 1
    assert isinstance(found[0], asyncio.CancelledError)
    assert len({getattr(tenant, "project_id", None) for tenant in found[1:]}) == 1
