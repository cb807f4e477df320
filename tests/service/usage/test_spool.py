"""The spool under kill -9, full disks, torn lines, two processes and a database that is away: booked once, each one."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.contracts.ids import ProjectId
from service.db import Database
from service.settings import ServiceSettings
from service.usage.ledger import UsageEntry
from service.usage.spool import REJECTED, Spool
from tests.service.stage import Stage, open_stage

WRITER = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
from service.usage.ledger import UsageEntry
from service.usage.spool import Spool

async def main(folder, project):
    # Without a database nothing is delivered: what this process leaves is what the disk has.
    Path(folder).mkdir()
    spool = Spool(Path(folder), None)
    number = 0
    while True:
        number += 1
        spool.append(UsageEntry(id=f"{project}-{number}", project_id=project, kind="completion", model="m",
                                prompt_tokens=number, completion_tokens=1, created_at=datetime.now(UTC)))
        # What is printed has been acknowledged.
        print(number, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
async def stage(service_settings: ServiceSettings) -> AsyncIterator[Stage]:
    async with open_stage(service_settings) as stage:
        yield stage


@pytest.fixture
async def project(stage: Stage) -> ProjectId:
    return await stage.project()


def entries(project: str, count: int) -> list[UsageEntry]:
    return [
        UsageEntry(
            id=f"req_{uuid.uuid4().hex}", project_id=project, kind="completion", model="m", key_id=None,
            prompt_tokens=number, completion_tokens=2, created_at=datetime.now(UTC),
        )
        for number in range(count)
    ]  # fmt: skip


async def booked(stage: Stage, project: str) -> tuple[int, int]:
    ((count, tokens),) = await stage.rows(
        "select count(*), coalesce(sum(prompt_tokens), 0) from usage where project_id = :project", project=project
    )
    return count, int(tokens)


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


async def test_entries_reach_the_ledger_once_with_their_own_time(
    stage: Stage, project: ProjectId, tmp_path: Path
) -> None:
    spool = Spool(tmp_path, stage.resources.database)
    used = datetime.now(UTC) - timedelta(hours=5)
    async with spool.running():
        for entry in entries(project, 2500):
            spool.append(entry)
        spool.append(UsageEntry(id="five-hours-ago", project_id=project, kind="completion", model="m", created_at=used))
        assert await spool.deliver()
        assert await booked(stage, project) == (2501, sum(range(2500)))
        assert segments(tmp_path) == []
        assert await spool.deliver()
    ((created_at,),) = await stage.rows("select created_at from usage where id = 'five-hours-ago'")
    assert created_at == used


async def test_the_background_task_delivers_and_syncs_by_itself(
    stage: Stage, project: ProjectId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda segment: (synced.append(segment), real(segment)))
    monkeypatch.setattr("service.usage.spool.DELIVER_SECONDS", 0.3)
    spool = Spool(tmp_path, stage.resources.database)
    async with spool.running():
        for entry in entries(project, 100):
            spool.append(entry)
        async with asyncio.timeout(20):
            while await booked(stage, project) != (100, sum(range(100))):  # noqa: ASYNC110  another task's transaction
                await asyncio.sleep(0.05)
    # Batched: far fewer syncs than entries.
    assert 1 <= len(synced) < 20


async def test_what_a_killed_process_acknowledged_is_booked_by_the_next(
    stage: Stage, project: ProjectId, tmp_path: Path
) -> None:
    folder = tmp_path / "killed00"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), project], stdout=subprocess.PIPE, cwd="/")
    assert process.stdout is not None
    acknowledged = 0
    while acknowledged < 500:
        acknowledged = int(await asyncio.to_thread(process.stdout.readline))
    # While its writer lives, nobody takes its segment.
    spool = Spool(folder, stage.resources.database)
    assert await spool.deliver()
    assert await booked(stage, project) == (0, 0)
    process.send_signal(signal.SIGKILL)
    rest, _ = await asyncio.to_thread(process.communicate)
    # The last line of the pipe may be cut; the one before it was acknowledged for certain.
    acknowledged = max(acknowledged, *(int(line) for line in rest.split()[:-1]), 0)
    assert await spool.deliver()
    count, tokens = await booked(stage, project)
    assert acknowledged <= count <= acknowledged + 2
    assert tokens == count * (count + 1) // 2
    assert segments(folder) == []


async def test_a_segment_may_be_delivered_twice_and_by_two_at_once(
    stage: Stage, project: ProjectId, tmp_path: Path
) -> None:
    writer = Spool(tmp_path, stage.resources.database)
    for entry in entries(project, 300):
        writer.append(entry)
    copy = segments(tmp_path)[0].read_bytes()
    others = [Spool(tmp_path, stage.resources.database) for _ in range(3)]
    assert all(await asyncio.gather(*(spool.deliver() for spool in [writer, *others])))
    (tmp_path / "1-1-1.jsonl").write_bytes(copy)
    assert await writer.deliver()
    assert await booked(stage, project) == (300, sum(range(300)))


async def test_torn_and_foreign_lines_are_skipped_and_the_rest_booked(
    stage: Stage, project: ProjectId, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, stage.resources.database)
    for entry in entries(project, 3):
        spool.append(entry)
    (path,) = segments(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"{}\nnot json\n" + whole.replace(b"req_", b"raq_")[:-10])
    assert await spool.deliver()
    # Three, and the two whole ones of the torn copy.
    assert (await booked(stage, project))[0] == 5
    assert len([record for record in caplog.records if "is skipped" in record.message]) == 3


async def test_an_entry_that_no_database_takes_does_not_keep_the_others_back(
    stage: Stage, project: ProjectId, tmp_path: Path
) -> None:
    spool = Spool(tmp_path, stage.resources.database)
    good, bad = entries(project, 4), entries("proj_of_another_time", 1)
    for entry in [*good[:2], *bad, *good[2:]]:
        spool.append(entry)
    assert await spool.deliver()
    assert (await booked(stage, project))[0] == 4
    assert segments(tmp_path) == []
    assert bad[0].id in (tmp_path / REJECTED).read_text()


async def test_while_the_database_is_away_one_segment_grows(
    stage: Stage, project: ProjectId, tmp_path: Path, service_settings: ServiceSettings
) -> None:
    url = service_settings.control_database_url.get_secret_value()
    away = SecretStr(url.partition("?")[0] + "?host=/nowhere")
    spool = Spool(tmp_path, Database(service_settings.model_copy(update={"control_database_url": away})))
    spool.append(entries(project, 1)[0])
    assert not await spool.deliver()
    for entry in entries(project, 50):
        spool.append(entry)
        if entry.prompt_tokens % 10 == 0:
            assert not await spool.deliver()
    assert len(segments(tmp_path)) == 2
    assert spool.accepting
    del spool
    # The process that held the segments is gone, its locks with it.
    for number in _open_descriptors(tmp_path):
        os.close(number)
    assert await Spool(tmp_path, stage.resources.database).deliver()
    assert (await booked(stage, project))[0] == 51


def _open_descriptors(folder: Path) -> list[int]:
    links = {int(path.name): path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    return [number for number, path in links.items() if os.path.realpath(path).startswith(str(folder))]


async def test_a_full_disk_loses_nothing_while_the_database_answers(
    stage: Stage, project: ProjectId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third write puts down half a line and stops, as a disk does that has just filled up."""
    writes, real = itertools.count(), os.write

    def full(segment: int, data: bytes) -> int:
        return real(segment, data[: len(data) // 2]) if next(writes) % 3 == 2 else real(segment, data)

    monkeypatch.setattr("service.usage.spool.os.write", full)
    monkeypatch.setattr("service.usage.spool.HELD_LIMIT", 10)
    spool = Spool(tmp_path, stage.resources.database)
    for entry in entries(project, 30):
        spool.append(entry)
    assert not spool.accepting
    assert await spool.deliver()
    assert spool.accepting
    assert await booked(stage, project) == (30, sum(range(30)))


async def test_closing_delivers_what_is_left(stage: Stage, project: ProjectId, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    spool = Spool(folder, stage.resources.database)
    async with spool.running():
        await spool.deliver()
        spool.append(entries(project, 1)[0])
    assert await booked(stage, project) == (1, 0)
    assert segments(folder) == []
