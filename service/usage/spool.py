"""The spool: usage that was acknowledged to a client but is not in the ledger yet.

An entry is one JSON line, handed to the kernel by `append` before the client gets its last byte, so it survives kill -9
of this process; it is fsynced within SYNC_SECONDS, so a power cut loses no more than that. A task moves whole segments
into the ledger and deletes one only after the commit; the ledger takes an id once, so a replay books nothing twice.

Each process writes its own segment under an advisory lock and delivers every segment that nobody holds, so what a
killed process left is delivered by whichever runs next. While the database is down, one segment just grows.
"""

import asyncio
import contextlib
import fcntl
import itertools
import logging
import os
import time
from collections.abc import AsyncGenerator, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import orjson
from sqlalchemy.exc import DataError, IntegrityError

from service.db import Database, DatabaseUnavailable
from service.usage import ledger
from service.usage.ledger import UsageEntry

SYNC_SECONDS = 0.05
DELIVER_SECONDS = 1.0
CLOSE_SECONDS = 5.0
BATCH_ROWS = 200
"""Of one statement. To read, check and encode so many takes a millisecond or two, in which nobody is answered."""
SEGMENT_BYTES = 16 << 20
HELD_LIMIT = 10_000
"""Entries kept in memory while the disk takes none. Beyond it, `accepting` is False."""
REJECTED = "rejected"
"""File of entries that this database can never take, for people to look at."""

log = logging.getLogger("service.usage.spool")


class Spool:
    """One process's writer and deliverer. `append` is for the event loop's thread only."""

    def __init__(self, folder: Path, database: Database) -> None:
        self._folder = folder
        self._database = database
        self._segment: int | None = None
        self._written = 0
        self._numbers = itertools.count()
        self._dirty = asyncio.Event()
        self._delivering = asyncio.Lock()
        self._held: list[UsageEntry] = []

    @property
    def accepting(self) -> bool:
        """False where disk and database have refused entries for so long that memory must not hold more of them."""
        return len(self._held) < HELD_LIMIT

    def append(self, entry: UsageEntry) -> None:
        """Returns once the kernel has the entry. Where the disk refuses it, it waits in memory for the database."""
        line = orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
        try:
            if self._segment is None:
                self._segment = self._open_segment()
                self._written = 0
            if os.write(self._segment, line) != len(line):
                raise OSError("the disk took only a part of the entry")
        except OSError as error:
            log.error("usage %s cannot be spooled and is held in memory: %s", entry.id, error)
            self._held.append(entry)
            self._leave_segment()
            return
        self._written += len(line)
        self._dirty.set()
        if self._written >= SEGMENT_BYTES:
            self._leave_segment()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Syncs and delivers until the block ends, then delivers once more. What stays is the next start's."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        tasks = [asyncio.create_task(self._keep_syncing()), asyncio.create_task(self._keep_delivering())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.deliver(), CLOSE_SECONDS)

    async def deliver(self) -> bool:
        """Moves everything that was appended so far into the ledger. False where some of it has to wait."""
        async with self._delivering:
            try:
                await self._deliver_held()
                await self._deliver_segments()
                # Only after older ones went through: during an outage one segment grows, not one more per second.
                if self._segment is not None:
                    sealed, self._segment = self._segment, None
                    await asyncio.to_thread(_sync, sealed, self._folder)
                    await self._deliver_segments()
            except (DatabaseUnavailable, OSError) as error:
                log.warning("usage stays in the spool for now: %s", error)
                return False
            return True

    async def _keep_syncing(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(SYNC_SECONDS)
            self._dirty.clear()
            if self._segment is None:
                continue
            try:
                # A duplicate, because delivery may close the segment meanwhile and its number may be used again.
                await asyncio.to_thread(_sync, os.dup(self._segment), self._folder)
            except OSError:
                log.exception("the spool cannot be synced")

    async def _keep_delivering(self) -> None:
        while True:
            try:
                await self.deliver()
            except Exception:
                log.exception("usage cannot be delivered; trying again")
            await asyncio.sleep(DELIVER_SECONDS)

    def _open_segment(self) -> int:
        name = f"{time.time_ns()}-{os.getpid()}-{next(self._numbers)}"
        hidden = self._folder / f"{name}.new"
        segment = os.open(hidden, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        # Locked before it gets the name that deliverers look for: none may take it away while it is still empty.
        fcntl.flock(segment, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(self._folder / f"{name}.jsonl")
        return segment

    def _leave_segment(self) -> None:
        """The next entry starts a new segment; this one may be delivered."""
        if self._segment is not None:
            os.close(self._segment)
            self._segment = None

    async def _deliver_held(self) -> None:
        while batch := self._held[:BATCH_ROWS]:
            await self._book(batch)
            del self._held[: len(batch)]

    async def _deliver_segments(self) -> None:
        for path in sorted(self._folder.glob("*.jsonl")):
            file = _locked(path)
            if file is None:
                continue
            with file:
                entries = _entries(file, path)
                while batch := list(itertools.islice(entries, BATCH_ROWS)):
                    await self._book(batch)
                path.unlink(missing_ok=True)

    async def _book(self, batch: list[UsageEntry]) -> None:
        try:
            async with self._database.control() as session:
                await ledger.record(session, batch)
        except (IntegrityError, DataError) as error:
            if len(batch) > 1:
                for entry in batch:
                    await self._book([entry])
                return
            # Nothing makes it valid, for instance its project after a restore; it must not keep the others back.
            log.error("usage %s cannot be booked here: %s", batch[0].id, type(error.orig).__name__)
            _set_aside(batch[0], self._folder)


def _set_aside(entry: UsageEntry, folder: Path) -> None:
    with (folder / REJECTED).open("ab") as rejected:
        rejected.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))


def _locked(path: Path) -> IO[bytes] | None:
    """The segment, ours to deliver, or None where its writer lives or another process delivers it."""
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _entries(file: IO[bytes], path: Path) -> Iterator[UsageEntry]:
    for number, line in enumerate(file, start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("it is torn")
            values: dict[str, Any] = orjson.loads(line)
            values["created_at"] = datetime.fromisoformat(values["created_at"])
            yield UsageEntry(**values)
        except (ValueError, TypeError, KeyError) as error:
            log.error("line %d of spool segment %s is skipped: %s", number, path.name, error)


def _sync(segment: int, folder: Path) -> None:
    """Makes the segment and its name durable, then closes the descriptor."""
    try:
        os.fdatasync(segment)
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        os.close(segment)
