"""`python -m service` as whoever supervises it sees it: one line when ready, one sentence when refused, a clean end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from deploy.local.postgres import Postgres
from service.settings import ServiceSettings
from tests.conftest import wait_until


def variables(service_settings: ServiceSettings) -> dict[str, str]:
    """The environment of a service process with these settings, as far as tests change them."""
    store = service_settings.store
    assert store.endpoint
    assert store.access_key
    assert store.secret_key
    return {
        "PATH": os.environ["PATH"],
        "WEFT_PORT": str(service_settings.port),
        "WEFT_DATABASE_URL": service_settings.database_url.get_secret_value(),
        "WEFT_CONTROL_DATABASE_URL": service_settings.control_database_url.get_secret_value(),
        "WEFT_STORE__ENDPOINT": store.endpoint,
        "WEFT_STORE__ACCESS_KEY": store.access_key.get_secret_value(),
        "WEFT_STORE__SECRET_KEY": store.secret_key.get_secret_value(),
        "WEFT_ADMIN_KEY": service_settings.admin_key.get_secret_value(),
        "WEFT_WORKER_TOKEN": service_settings.worker_token.get_secret_value(),
        "WEFT_REPLICA_TOKEN": service_settings.replica_token.get_secret_value(),
        "WEFT_SECRET": service_settings.secret.get_secret_value(),
        "WEFT_SPOOL_DIR": str(service_settings.spool_dir),
        "WEFT_BASE_MODELS": json.dumps([base.model_dump() for base in service_settings.base_models]),
    }


@pytest.fixture
def environment(service_settings: ServiceSettings) -> dict[str, str]:
    return variables(service_settings)


def finished(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)


@contextlib.contextmanager
def serving(environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "service"], env=environment, stdout=output, stderr=output)
    try:
        wait_until(lambda: b"service: listening on" in log.read_bytes() or process.poll() is not None, seconds=60)
        yield process
    finally:
        process.kill()
        process.wait()


def test_it_says_when_it_listens_stays_small_and_ends_cleanly(environment: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(environment, log) as process:
        address = f"http://127.0.0.1:{environment['WEFT_PORT']}"
        assert f"service: listening on {address}\n" in log.read_text()
        assert httpx2.get(f"{address}/healthz").status_code == 200
        assert psutil.Process(process.pid).memory_info().rss < 250 << 20
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert "Traceback" not in log.read_text()
    for name in ("ADMIN_KEY", "WORKER_TOKEN", "REPLICA_TOKEN", "SECRET", "STORE__SECRET_KEY"):
        assert environment[f"WEFT_{name}"] not in log.read_text()


def test_check_says_that_it_could_start(environment: dict[str, str]) -> None:
    assert finished(environment, "check").returncode == 0


@pytest.mark.parametrize("fault", ["superuser", "no database", "no store", "wrong password"])
def test_a_refused_start_is_one_sentence(
    environment: dict[str, str], postgres_server: Postgres, database_name: str, fault: str
) -> None:
    changes = {
        "superuser": {"WEFT_DATABASE_URL": postgres_server.url("postgres", database_name)},
        "no database": {"WEFT_CONTROL_DATABASE_URL": "postgresql+asyncpg://weft_control@/x?host=/nowhere"},
        "no store": {"WEFT_STORE__ENDPOINT": "http://127.0.0.1:1"},
        "wrong password": {"WEFT_DATABASE_URL": environment["WEFT_DATABASE_URL"].replace("weft_api:", "weft_api:x")},
    }
    result = finished({**environment, **changes[fault]}, "check")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("service: refuses to start: ")
    assert "Traceback" not in result.stderr


def test_an_unusable_configuration_names_the_variable_and_no_secret(environment: dict[str, str]) -> None:
    secret = "too-short-to-be-safe"
    result = finished({**environment, "WEFT_ADMIN_KEY": secret, "WEFT_PORT": "http"}, "check")
    assert result.returncode == 2
    assert "WEFT_ADMIN_KEY: " in result.stderr
    assert "WEFT_PORT: " in result.stderr
    assert secret not in result.stderr
    garbled = finished({**environment, "WEFT_STORE": f'{{"secret_key": "{secret}"'}, "check")
    assert garbled.returncode == 2
    assert secret not in garbled.stderr
    assert "Traceback" not in garbled.stderr
