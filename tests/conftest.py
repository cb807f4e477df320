"""Shared parts of the tests: one real PostgreSQL and one real S3 endpoint per test process, both embedded.

A database is cloned from a migrated template for each module that asks, so modules never see each other's rows.
"""

import asyncio
import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local import objectstore, postgres, secrets
from service.contracts.store import ObjectStore
from service.settings import ServiceSettings

pytest_plugins = ["tests.e2e.stack"]

TEMPLATE = "weft_template"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0, what: str = "condition") -> None:
    """Polls `condition` until it holds; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not hold within {seconds} s")
        time.sleep(0.02)


@contextlib.contextmanager
def running(argv: list[str], log: Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that is gone when the block ends."""
    with log.open("ab") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, cwd="/", **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def test_secrets(tmp_path_factory: pytest.TempPathFactory) -> secrets.Secrets:
    return secrets.load_or_create(tmp_path_factory.mktemp("secrets"))


@pytest.fixture(scope="session")
def postgres_server(test_secrets: secrets.Secrets) -> Iterator[postgres.Postgres]:
    """A running server with the roles and a migrated template database. Not durable: its rows are thrown away."""
    # Not in pytest's folder: each new session closes that one to others, and as root the server runs as another user.
    with tempfile.TemporaryDirectory(prefix="weft-postgres-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        server = postgres.prepare(folder / "data", test_secrets)
        argv = [*server.argv, "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=off"]
        with running(argv, folder / "log", **server.identity) as process:
            wait_until(lambda: process.poll() is None and asyncio.run(server.ready()), what="PostgreSQL ready")
            asyncio.run(server.create_roles())
            asyncio.run(server.create_database(TEMPLATE))
            asyncio.run(postgres.migrate(server.url("weft_owner", TEMPLATE)))
            yield server


@pytest.fixture(scope="session")
def local_store(
    tmp_path_factory: pytest.TempPathFactory, test_secrets: secrets.Secrets
) -> Iterator[objectstore.LocalObjectStore]:
    folder = tmp_path_factory.mktemp("objects")
    store = objectstore.prepare(folder / "data", free_port(), test_secrets)
    with running(store.argv, folder / "log", env=store.env):
        client = ObjectStore(store.settings)
        wait_until(lambda: _reachable(client), what="object store ready")
        yield store


@pytest.fixture(scope="session")
def object_store(local_store: objectstore.LocalObjectStore) -> ObjectStore:
    return ObjectStore(local_store.settings)


@pytest.fixture(scope="module")
def database_name(postgres_server: postgres.Postgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh copy of the migrated template, dropped when the module is done."""
    name = f"t_{abs(hash(request.node.nodeid)):x}"[:40]
    asyncio.run(_admin(postgres_server, f'create database "{name}" template {TEMPLATE} owner weft_owner'))
    yield name
    asyncio.run(_admin(postgres_server, f'drop database "{name}" with (force)'))


@pytest.fixture(scope="module")
def service_settings(
    postgres_server: postgres.Postgres,
    local_store: objectstore.LocalObjectStore,
    test_secrets: secrets.Secrets,
    database_name: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> ServiceSettings:
    """Settings of a service over this module's database. The base model is described, never loaded, by the service."""
    return ServiceSettings.model_validate(
        {
            "port": free_port(),
            "database_url": postgres_server.url("weft_api", database_name),
            "control_database_url": postgres_server.url("weft_control", database_name),
            "store": local_store.settings.model_dump(),
            "base_models": [
                {
                    "name": "weft-tiny",
                    "source": "tiny",
                    "fingerprint": "f" * 64,
                    "chat_template_sha256": "c" * 64,
                    "architecture": "LlamaForCausalLM",
                    "hidden_size": 128,
                    "context_length": 1024,
                    "parameters": 1_000_000,
                }
            ],
            "admin_key": test_secrets.admin_key,
            "worker_token": test_secrets.worker_token,
            "replica_token": test_secrets.replica_token,
            "secret": test_secrets.secret,
            "spool_dir": tmp_path_factory.mktemp("spool"),
            "lease_ttl_seconds": 2.0,
            "lease_renew_seconds": 0.3,
            "reap_seconds": 0.2,
        }
    )


async def _admin(server: postgres.Postgres, statement: str) -> None:
    connection = await server.connect("postgres", "postgres")
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _reachable(client: ObjectStore) -> bool:
    try:
        client.ensure_bucket()
    except Exception:
        return False
    return True
