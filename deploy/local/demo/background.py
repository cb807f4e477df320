"""A stack that goes on running after the demo: found if it runs already, else started in the background."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from deploy.local.folder import DataFolder, StackError
from deploy.local.processes import Records

READY = "ready http://"
PORTS_TRIED = 50


def ensure(data: DataFolder, port: int, base: str | None, say: Callable[[str], None]) -> str:
    """The address of a ready stack on `data`. Raises StackError with weftd's own words where none can be had."""
    if data.holder() is not None:
        if base is not None:
            raise StackError(f"a stack runs on {data.root} already; end it first, to start one over {base}: make down")
        return _running(data)
    data.create()
    log = data.log("weftd")
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "deploy.local.cli", "up", "--data", str(data.root), "--port", str(_free(port))]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *(("--base", base) if base else ())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _follow(process, log, say)


def _running(data: DataFolder) -> str:
    records = Records.load(data.processes)
    if records is None or not records.ready:
        raise StackError(f"the stack on {data.root} is not ready yet; try again in a minute, or end it: make down")
    return f"http://127.0.0.1:{data.remembered_ports()['service']}"


def _follow(process: subprocess.Popen[bytes], log: Path, say: Callable[[str], None]) -> str:
    """Passes the start's lines on until it is ready."""
    with log.open() as lines:
        while True:
            line = lines.readline()
            if line.startswith(READY):
                return line.split()[1]
            if line:
                say(f"  {line.rstrip()}")
            elif process.poll() is not None:
                raise StackError(lines.read().strip() or "the stack could not be started; its words are above")
            else:
                time.sleep(0.1)


def _free(port: int) -> int:
    for candidate in range(port, port + PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            return candidate
    raise StackError(f"no free port from {port} to {port + PORTS_TRIED - 1}; name another: make demo PORT=9000")
