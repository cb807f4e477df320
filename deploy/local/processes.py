"""Process trees: whose they are, how they end, what a killed stack left behind. Acts only where it has proof.

A process is known by its id and the second it started, never by its name: ids are used again.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from deploy.local.secrets import write_private

PR_SET_CHILD_SUBREAPER = 36
START_TOLERANCE = 2.0
"""Start times are counted from a boot time that the clock's corrections move by a second or so."""
KILL_SECONDS = 3.0


class Recorded(BaseModel):
    """One process as `pids.json` knows it."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: float

    def find(self) -> psutil.Process | None:
        """The process itself, or None where it has ended, even if another has its id by now."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < START_TOLERANCE
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


class RecordedPart(Recorded):
    children: tuple[Recorded, ...] = ()


class Records(BaseModel):
    """`pids.json`: the supervisor and every part with the processes below it."""

    model_config = ConfigDict(frozen=True)

    supervisor: Recorded
    ready: bool
    parts: dict[str, RecordedPart]

    def save(self, path: Path) -> None:
        write_private(path, self.model_dump_json(indent=1))

    @classmethod
    def load(cls, path: Path) -> "Records | None":
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError, json.JSONDecodeError):
            return None


def record(pid: int) -> RecordedPart | None:
    """`pid` and everything below it, or None where it is gone."""
    try:
        process = psutil.Process(pid)
        below = process.children(recursive=True)
        started = process.create_time()
    except psutil.NoSuchProcess:
        return None
    children: list[Recorded] = []
    for child in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            children.append(Recorded(pid=child.pid, started=child.create_time()))
    return RecordedPart(pid=pid, started=started, children=tuple(children))


def record_self() -> Recorded:
    return Recorded(pid=os.getpid(), started=psutil.Process().create_time())


def below_self() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def works_in(pid: int, folder: Path) -> bool:
    """Whether `pid` runs with `folder` as its working directory, as a PostgreSQL server does with its data."""
    try:
        return Path(psutil.Process(pid).cwd()) == folder
    except psutil.Error:
        return False


def kill_all_below_self() -> None:
    for process in below_self():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def adopt_orphans(yes: bool = True) -> None:
    """From here on, a process whose parent dies becomes a child of this one and so stays in sight."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(yes))


def tree(pid: int) -> list[psutil.Process]:
    """`pid` and everything below it."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def orphans(part: RecordedPart) -> list[psutil.Process]:
    """What still runs of a part whose first process ended: its session's processes and those recorded below it."""
    known = {child.pid for child in part.children if child.find() is not None}
    found: list[psutil.Process] = []
    for process in below_self():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if process.pid in known or os.getsid(process.pid) == part.pid:
                found.append(process)
    return found


async def end(processes: Iterable[psutil.Process], first: signal.Signals, grace: float) -> None:
    """Sends `first`, waits up to `grace` seconds, kills what is left."""
    alive = _signal(processes, first)
    if not await gone(alive, grace):
        await gone(_signal(alive, signal.SIGKILL), KILL_SECONDS)


async def end_leftovers(records: Records) -> int:
    """Ends what an earlier supervisor, killed itself, left running. Returns how many processes that were."""
    left: dict[int, psutil.Process] = {}
    for part in records.parts.values():
        for known in (part, *part.children):
            process = known.find()
            if process is not None:
                left |= {each.pid: each for each in tree(process.pid)}
    # The kernel sent each part its own stop signal when the supervisor died, so they are ending already.
    if left and not await gone(list(left.values()), KILL_SECONDS):
        await end(left.values(), signal.SIGTERM, KILL_SECONDS)
    return len(left)


def reap_adopted(own: set[int]) -> None:
    """Collects ended processes that were adopted. `own` are those that somebody else waits for."""
    for child in psutil.Process().children():
        if child.pid not in own:
            with contextlib.suppress(ChildProcessError, psutil.NoSuchProcess):
                if child.status() == psutil.STATUS_ZOMBIE and os.getsid(child.pid) != os.getsid(0):
                    os.waitpid(child.pid, os.WNOHANG)


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> list[psutil.Process]:
    sent: list[psutil.Process] = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
            sent.append(process)
    return sent


async def gone(processes: list[psutil.Process], seconds: float) -> bool:
    """Whether all of them ended within `seconds`."""
    deadline = time.monotonic() + seconds
    while any(_runs(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
