"""The whole embedded stack for tests: `weftd up` as an operator runs it, over the tiny base, once per test session."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local import objectstore, postgres, secrets
from deploy.local.admin import Admin
from deploy.local.folder import DataFolder
from deploy.local.processes import Recorded, Records
from service.contracts.store import ObjectStore
from tests.conftest import free_port

START_SECONDS = 240
OPERATOR = {
    "WEFT_LEASE_TTL_SECONDS": "8",
    "WEFT_LEASE_RENEW_SECONDS": "1",
    "WEFT_TRAINER_CHECKPOINT_SECONDS": "2",
    "WEFT_IMPORT_PLACES": '["bring/{project}"]',
    "WEFT_WEBHOOKS_TO_PRIVATE_NETWORKS": "true",
}
"""What any operator may choose: short leases and many checkpoints, so that a killed part is replaced in seconds, for
each project a folder from which it may import, and webhooks to receivers of the tests.
"""


class Stack:
    """One data folder and the `weftd up` that runs on it. Stopped and started again it keeps its address."""

    def __init__(self, root: Path, *options: str, **variables: str) -> None:
        """`options` for `weftd up` and `variables` for its environment, beside those of every test."""
        self._options = options
        self._variables = OPERATOR | variables
        self.data = DataFolder(root / "data")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.base_url = f"{self.url}/v1"
        self.output = root / "weftd.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._keys: dict[str, str] = {}

    @property
    def admin_key(self) -> str:
        return self.data.admin_key.read_text().strip()

    def start(self) -> None:
        """Returns when the stack says that it is ready."""
        # An older start's words are kept, but must not be taken for this one's.
        before = self.output.stat().st_size if self.output.exists() else 0
        argv = [*WEFTD, "up", "--data", str(self.data.root), "--port", str(self.port)]
        argv += self._options
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | self._variables,
            )
        deadline = time.monotonic() + START_SECONDS
        while f"ready {self.url}\n" not in (said := self.output.read_text()[before:]):
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the stack did not start:\n{said}")
            time.sleep(0.1)

    def stop(self) -> float:
        """Stops the stack as an operator does. Returns the seconds it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"the stack did not stop:\n{self.output.read_text()}")
        return time.monotonic() - began

    def project(self, name: str) -> str:
        """A key of the project of that name; the same one each time."""
        if name not in self._keys:
            self._keys[name] = Admin(self.url, self.admin_key).create_key(name)
        return self._keys[name]

    def bucket(self, name: str) -> ObjectStore:
        """A bucket beside the service's own."""
        known = secrets.load_or_create(self.data.root)
        store = objectstore.prepare(self.data.objects, self.data.remembered_ports()["objects"], known)
        made = ObjectStore(store.settings.model_copy(update={"bucket": name}))
        made.ensure_bucket()
        return made

    def records(self) -> Records:
        records = Records.load(self.data.processes)
        assert records is not None, "the stack does not run"
        return records

    def pids(self) -> dict[str, int]:
        """The first process of each part."""
        return {name: part.pid for name, part in self.records().parts.items()}

    def running(self) -> list[Recorded]:
        """Every process of the stack as of now, to ask later which of them is left."""
        records = self.records()
        return [
            records.supervisor,
            *(each for part in records.parts.values() for each in (part, *part.children)),
        ]

    def adapter_manifest(self, model: str) -> dict[str, Any]:
        """The manifest of the adapter behind a public model name, from the database."""
        query = "select manifest from adapters join models on models.adapter_id = adapters.id where models.name = $1"
        return json.loads(asyncio.run(self._value(query, model)))

    async def _value(self, query: str, *arguments: object) -> Any:
        server = postgres.prepare(self.data.postgres, secrets.load_or_create(self.data.root))
        connection = await server.connect("postgres", postgres.DATABASE)
        try:
            return await connection.fetchval(query, *arguments)
        finally:
            await connection.close()


WEFTD = [sys.executable, "-m", "deploy.local.cli"]


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Running and ready. A test that stops it starts it again."""
    # Not in pytest's folder: each new session closes that one to others, and as root PostgreSQL runs as another user.
    with tempfile.TemporaryDirectory(prefix="weft-stack-") as root:
        made = Stack(Path(root))
        try:
            made.start()
            yield made
        finally:
            if made.process is not None and made.process.poll() is None:
                made.stop()
