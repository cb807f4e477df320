"""A service that is killed at any point of an upload leaves the whole file or none, and nothing that is not swept.

A job that was created over a file still being put together begins all the same.
"""

import asyncio
import contextlib
import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import openai
import pytest
from sqlalchemy import text

from service.contracts.ids import FileId, ProjectId
from service.contracts.layout import TENANTS, file_key, project_prefix
from service.contracts.store import ObjectStore
from service.files import sweep as files
from service.resources import Resources
from service.settings import ServiceSettings
from service.uploads import sweep as uploads
from tests.conftest import wait_until
from tests.service.test_app_process import serving, variables

KILLS = 2
LINE = b'{"prompt":"%s","completion":"b"}\n' % (b"a" * 300)
CONTENT = LINE * 30_000
PART = 3_000_000
PARTS = [CONTENT[start : start + PART] for start in range(0, len(CONTENT), PART)]
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Killable:
    """A service that is started again and again over the same database and store, and one project of it."""

    def __init__(self, settings: ServiceSettings, log: Path, foreground: int) -> None:
        self.settings = settings
        self._log = log
        self._variables = {**variables(settings), "WEFT_FOREGROUND_BYTES": str(foreground)}
        self._base = f"http://127.0.0.1:{settings.port}/v1"
        admin = {"authorization": f"Bearer {self._variables['WEFT_ADMIN_KEY']}"}
        projects = f"{self._base}/organization/projects"
        with self.running():
            made = httpx2.post(projects, json={"name": f"killed-{foreground}"}, headers=admin).json()["id"]
            key = httpx2.post(f"{projects}/{made}/api_keys", json={"name": "k"}, headers=admin).json()["value"]
        self.project = ProjectId(made)
        self.api = openai.OpenAI(api_key=key, base_url=self._base, max_retries=0, timeout=60)

    @contextlib.contextmanager
    def running(self, seconds: float | None = None) -> Iterator[None]:
        """Until the end of the block, or killed after so many seconds."""
        with serving(self._variables, self._log) as process:
            timer = threading.Timer(seconds or 3600, process.kill)
            timer.start()
            try:
                yield
            finally:
                timer.cancel()

    def hours_later(self) -> None:
        """What the sweeps leave when everything that was under way is over."""

        async def run() -> None:
            resources = Resources.of(self.settings)
            try:
                async with resources.database.control() as session:
                    await session.execute(text("update uploads set expires_at = least(expires_at, now())"))
                    await session.execute(text("update files set deleted_at = now() where deleted_at > now()"))
                async with resources.database.tenant(self.project) as session:
                    await session.execute(text("update upload_parts set created_at = now() - interval '2 hours'"))
                while await uploads.sweep(resources, timedelta(0)) or await files.sweep(resources, timedelta(0)):
                    pass
                resources.store.abort_stale_puts(TENANTS, datetime.now(UTC) + timedelta(hours=1))
            finally:
                await resources.database.close()

        asyncio.run(run())

    def take_over(self) -> None:
        """As if whoever put files together had been dead for long."""

        async def run() -> None:
            resources = Resources.of(self.settings)
            try:
                async with resources.database.control() as session:
                    await session.execute(text("update uploads set assembling_until = now()"))
            finally:
                await resources.database.close()

        asyncio.run(run())


@pytest.fixture(params=[1 << 30, 1], ids=["in the foreground", "in the background"])
def killable(service_settings: ServiceSettings, tmp_path: Path, request: pytest.FixtureRequest) -> Killable:
    return Killable(service_settings, tmp_path / "log", request.param)


def upload(api: openai.OpenAI, done: Callable[[str, list[str]], None]) -> str:
    """The id of the acknowledged file. `done` is told the upload when all its parts are there."""
    begun = api.uploads.create(bytes=len(CONTENT), filename="f", mime_type="text/jsonl", purpose="fine-tune")
    ids = [api.uploads.parts.create(begun.id, data=part).id for part in PARTS]
    done(begun.id, ids)
    completed = api.uploads.complete(begun.id, part_ids=ids)
    assert completed.file is not None
    return completed.file.id


def test_killed_anywhere(killable: Killable, object_store: ObjectStore) -> None:
    seeded = random.Random(5)
    sent: dict[str, list[str]] = {}
    acknowledged: set[str] = set()
    jobs: set[str] = set()
    for _ in range(KILLS):
        with killable.running(seeded.uniform(0.1, 2.5)), contextlib.suppress(openai.APIError):
            while True:
                acknowledged.add(file := upload(killable.api, sent.__setitem__))
                jobs.add(killable.api.fine_tuning.jobs.create(model="weft-tiny", training_file=file).id)
    killable.take_over()
    with killable.running():
        # Whoever saw the answer dropped asks again, and finds one file for each upload.
        again = [killable.api.uploads.complete(begun, part_ids=ids).file for begun, ids in sent.items()]
        listed = {file.id for file in killable.api.files.list()}
        assert {file.id for file in again if file} == listed
        assert len(listed) == len(sent)
        assert acknowledged <= listed
        for file in listed:
            ready = killable.api.files.wait_for_processing(file, poll_interval=0.2, max_wait_seconds=120)
            assert ready.status == "processed"
            assert hashlib.sha256(killable.api.files.content(file).read()).hexdigest() == DIGEST
        # Also those whose files were put together by another process than the one that took the job.
        wait_until(lambda: all(killable.api.fine_tuning.jobs.retrieve(job).status == "queued" for job in jobs))
    killable.hours_later()
    left = {file_key(killable.project, FileId(file)) for file in listed}
    assert set(object_store.keys(project_prefix(killable.project))) == left
