"""The data folder of one embedded stack: what lies where, who holds it, which ports and processes are its own.

Everything a stack keeps is below this folder: moving or deleting a stack is moving or deleting the folder. One process
at a time holds it, by a lock that the kernel drops with that process.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deploy.local.secrets import write_private

LOG_LIMIT = 16 << 20
LOG_KEPT = 1 << 20
PRIVATE_FOLDERS = ("logs", "objects", "spool", "trainer", "adapters")
SHORT_PATH = 60
"""Children make unix sockets in the temporary folder, and a socket's whole path may have 107 bytes."""


class StackError(Exception):
    """The stack cannot do that; the text says why and what to do, in one line."""


class FolderInUse(StackError):
    """Another process runs a stack on this folder."""


@dataclass(frozen=True)
class DataFolder:
    root: Path

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def objects(self) -> Path:
        return self.root / "objects"

    @property
    def processes(self) -> Path:
        return self.root / "pids.json"

    @property
    def admin_key(self) -> Path:
        return self.root / "admin.key"

    @property
    def temporary(self) -> Path:
        """Children's TMPDIR: removed when the stack stops, with every socket a killed child left in it."""
        inside = self.root / "tmp"
        if len(str(inside).encode()) <= SHORT_PATH:
            return inside
        digest = hashlib.sha256(str(self.root).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"weft-{os.geteuid()}-{digest}-tmp"

    def log(self, part: str) -> Path:
        return self.root / "logs" / f"{part}.log"

    def private(self, name: str) -> Path:
        """The folder of that name, made where it is not there, closed to others."""
        (self.root / name).mkdir(exist_ok=True, mode=0o700)
        return self.root / name

    def create(self) -> None:
        """Makes the folder where it is not there. Raises StackError where this user may not write in it."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            # The root itself must let PostgreSQL's own user through, so each folder of tenants' data is closed itself.
            for name in PRIVATE_FOLDERS:
                self.private(name)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise StackError(
                f"cannot write in {self.root}: {error.strerror}; choose another folder with --data"
            ) from error

    def clear_temporary(self, make: bool) -> None:
        """Empties the children's TMPDIR, and removes it unless `make`."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        if make:
            self.temporary.mkdir(mode=0o700)

    def forget_processes(self) -> None:
        """Nothing of this stack runs any more."""
        self.processes.unlink(missing_ok=True)
        self.clear_temporary(make=False)

    def lock(self) -> IO[str]:
        """Takes the folder until the returned file is closed. Raises FolderInUse, naming the holder."""
        file = (self.root / "weftd.lock").open("a+")
        # Again for a moment: `holder`, in another process, takes the lock for an instant to see whether it is free.
        if not any(_lock(file, fcntl.LOCK_EX) or time.sleep(0.1) for _ in range(3)):
            file.close()
            holder = f"process {self.holder()}"
            raise FolderInUse(f"{self.root} is in use by {holder}; stop it first: weftd down --data {self.root}")
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        return file

    def holder(self) -> int | None:
        """The process that runs a stack on this folder, or None."""
        try:
            file = (self.root / "weftd.lock").open()
        except FileNotFoundError:
            return None
        with file:
            return None if _lock(file, fcntl.LOCK_SH) else int(file.read().strip() or 0)

    def ports(self, wanted: int, internal: Sequence[str]) -> dict[str, int]:
        """The service's port as wanted, and one for each `internal` part: the last time's where it is still free.

        Raises StackError where the wanted port is taken.
        """
        problem = _problem_of(wanted)
        if problem is not None:
            raise StackError(f"port {wanted} {problem}; choose another with --port")
        ports = {"service": wanted}
        remembered = self.remembered_ports()
        for part in internal:
            port = remembered.get(part, 0)
            ports[part] = port if port and port not in ports.values() and _problem_of(port) is None else _free_port()
        write_private(self.root / "ports.json", json.dumps(ports))
        return ports

    def remembered_ports(self) -> dict[str, int]:
        path = self.root / "ports.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def trim_logs(self) -> None:
        for path in (self.root / "logs").glob("*.log"):
            trim_log(path)


def trim_log(path: Path) -> None:
    """Keeps the end of a log that grew past its bound. Its writers append, so they go on at the new end."""
    if path.stat().st_size <= LOG_LIMIT:
        return
    with path.open("r+b") as file:
        file.seek(-LOG_KEPT, os.SEEK_END)
        kept = file.read()
        file.seek(0)
        file.truncate()
        file.write(kept)


def last_lines(path: Path, count: int = 15) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])


def _lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _problem_of(port: int) -> str | None:
    """Why a server could not listen on `port`, or None where it could."""
    with socket.socket() as probe:
        # As the servers do: a port whose last connections are still winding down is free to listen on.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
