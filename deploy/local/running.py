"""Looks at and ends a stack that another process runs: the commands `weftd status` and `weftd down`."""

import contextlib
import time

import psutil
from rich.console import Console
from rich.table import Table

from deploy.local.folder import DataFolder, StackError
from deploy.local.processes import Recorded, RecordedPart, Records

STOP_SECONDS = 25.0


def down(data: DataFolder) -> bool:
    """Stops the stack and returns when it is gone; False where none runs. Raises StackError where it does not stop."""
    holder = data.holder()
    if holder is None:
        return False
    try:
        supervisor = psutil.Process(holder)
        supervisor.terminate()
        supervisor.wait(STOP_SECONDS)
    except psutil.AccessDenied as error:
        raise StackError(f"process {holder} belongs to another user; stop it as that user") from error
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired as error:
        problem = f"process {holder} did not stop within {STOP_SECONDS:g} s; see {data.root / 'logs'}"
        raise StackError(problem) from error
    return True


def show(data: DataFolder) -> bool | None:
    """Prints a table of the parts. Whether the stack is ready, or None where none runs."""
    holder = data.holder()
    if holder is None:
        return None
    records = Records.load(data.processes)
    ready = records is not None and records.ready
    table = Table("part", "pid", "running since", "resident MiB", box=None)
    supervisor = Recorded(pid=holder, started=psutil.Process(holder).create_time())
    parts = records.parts if records is not None else {}
    for name, part in {"weftd": RecordedPart(**supervisor.model_dump()), **parts}.items():
        table.add_row(name, *_facts(part))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{'ready' if ready else 'starting'} http://127.0.0.1:{data.remembered_ports().get('service', '?')}")
    return ready


def _facts(part: RecordedPart) -> tuple[str, str, str]:
    process = part.find()
    if process is None:
        return "-", "restarting", "-"
    resident = 0
    for each in (part, *part.children):
        with contextlib.suppress(psutil.NoSuchProcess):
            if (found := each.find()) is not None:
                resident += found.memory_info().rss
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(part.started))
    return str(part.pid), since, str(resident >> 20)
