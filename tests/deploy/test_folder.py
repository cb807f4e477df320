"""The data folder: one holder at a time, ports that stay, logs that do not grow without end."""

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local import folder
from deploy.local.folder import DataFolder, FolderInUse, StackError
from tests.conftest import free_port

HOLD = """
import pathlib, sys, time
from deploy.local.folder import DataFolder
lock = DataFolder(pathlib.Path(sys.argv[1])).lock()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path / "data")
    made.create()
    return made


def test_one_holder_at_a_time_and_a_killed_one_holds_nothing(data: DataFolder) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(data.root)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert data.holder() == holder.pid
        with pytest.raises(FolderInUse, match=f"process {holder.pid}"):
            data.lock()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert data.holder() is None
    with data.lock():
        assert data.holder() == os.getpid()


def test_folders_of_tenants_data_are_closed_to_others(data: DataFolder) -> None:
    for name in folder.PRIVATE_FOLDERS:
        assert stat.S_IMODE((data.root / name).stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StackError, match=r"cannot write in .*choose another folder with --data"):
        DataFolder(tmp_path / "file" / "data").create()


def test_internal_ports_are_remembered_and_changed_only_when_taken(data: DataFolder) -> None:
    wanted = free_port()
    parts = ["objects", "replica", "replica-2"]
    first = data.ports(wanted, parts)
    assert first.keys() == {"service", *parts}
    assert len(set(first.values())) == 4
    assert data.ports(wanted, parts) == first
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first["replica"]))
        taken.listen()
        second = data.ports(wanted, parts)
    assert second["replica"] != first["replica"]
    assert {name: second[name] for name in ("objects", "replica-2")} == {
        name: first[name] for name in ("objects", "replica-2")
    }


def test_a_taken_service_port_is_refused(data: DataFolder) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StackError, match=r"in use; choose another with --port"):
            data.ports(taken.getsockname()[1], ["objects"])


def test_a_log_keeps_its_end_and_its_writer(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "LOG_LIMIT", 100)
    monkeypatch.setattr(folder, "LOG_KEPT", 10)
    path = data.log("part")
    with path.open("ab", buffering=0) as writer:
        writer.write(b"x" * 200 + b"0123456789")
        data.trim_logs()
        writer.write(b"more")
    assert path.read_bytes() == b"0123456789more"
    assert folder.last_lines(path) == "0123456789more"


def test_the_temporary_folder_is_short_enough_for_sockets(tmp_path: Path) -> None:
    deep = DataFolder(tmp_path / ("long" * 20))
    assert len(str(deep.temporary)) <= folder.SHORT_PATH
    assert deep.temporary != DataFolder(tmp_path / ("else" * 20)).temporary
