"""Supervision of scripted parts: started again, ever slower; stopped in order; nothing left, whatever was killed."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from deploy.local import children, processes
from deploy.local.children import Backoff, Part
from deploy.local.display import Display
from deploy.local.folder import DataFolder, StackError
from deploy.local.processes import Recorded, RecordedPart, Records
from deploy.local.supervisor import Supervisor
from tests.conftest import wait_until

SLEEPS = "import time; time.sleep(600)"
WITH_CHILD = f"""
    import subprocess, sys, time
    subprocess.Popen([sys.executable, "-c", "{SLEEPS}"], start_new_session=True)
    time.sleep(600)
"""
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path)
    made.create()
    return made


@pytest.fixture
async def supervisor(data: DataFolder):
    with (data.root / "shown").open("w") as shown:
        made = Supervisor(data, Display(Console(file=shown, soft_wrap=True)))
        yield made
        await made.stop()


def part(name: str, code: str, ready: Callable[[], bool] = lambda: True, **options: object) -> Part:
    async def probe() -> bool:
        return ready()

    return Part(name, [sys.executable, "-c", textwrap.dedent(code)], {}, probe, **options)  # type: ignore[arg-type]


async def eventually(condition: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.02)


def recorded(data: DataFolder) -> dict[str, RecordedPart]:
    records = Records.load(data.processes)
    return dict(records.parts) if records else {}


def shown(data: DataFolder) -> str:
    return (data.root / "shown").read_text()


async def test_a_part_that_dies_is_started_again_and_that_is_said(data: DataFolder, supervisor: Supervisor) -> None:
    supervisor.add(part("trainer", SLEEPS))
    await supervisor.until_ready("trainer")
    first = recorded(data)["trainer"]
    os.kill(first.pid, signal.SIGKILL)
    await eventually(lambda: recorded(data).get("trainer", first).pid != first.pid)
    assert "trainer was ended by SIGKILL; starting it again in 0.5 s" in shown(data)
    assert recorded(data)["trainer"].find() is not None


def test_restarts_slow_down_and_a_calm_time_forgives(monkeypatch: pytest.MonkeyPatch) -> None:
    backoff = Backoff()
    assert [backoff.after(1) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.after(children.CALM_SECONDS) == 0.5


async def test_a_part_that_never_comes_up_ends_the_wait_with_the_end_of_its_log(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "FIRST_DELAY", 0.01)
    supervisor.add(part("service", "import sys; sys.exit('the configuration is wrong')", ready=lambda: False))
    with pytest.raises(
        StackError, match=r"service failed 3 times before it was ready.*\n(.*\n)*the configuration is wrong"
    ):
        await supervisor.until_ready("service")


@pytest.fixture
def adopting():
    processes.adopt_orphans()
    yield
    processes.adopt_orphans(False)


async def test_the_dead_parts_own_children_are_ended_before_it_starts_again(
    data: DataFolder, supervisor: Supervisor, adopting: None
) -> None:
    def has_child() -> bool:
        supervisor.save_records()
        return "replica" in recorded(data) and recorded(data)["replica"].children != ()

    supervisor.add(part("replica", WITH_CHILD))
    await eventually(has_child)
    before = recorded(data)["replica"]
    os.kill(before.pid, signal.SIGKILL)
    await eventually(lambda: recorded(data).get("replica", before).pid != before.pid)
    assert before.children[0].find() is None


async def test_users_of_a_part_are_gone_before_it_stops(data: DataFolder) -> None:
    order = data.root / "order"
    says = """
        import signal, sys, time
        def leave(*_):
            time.sleep(0.2)
            with open({path!r}, "a") as file:
                file.write({name!r} + " ")
            sys.exit(0)
        signal.signal(signal.SIGTERM, leave)
        open({path!r} + ".{name}", "w").close()
        time.sleep(600)
    """
    supervisor = Supervisor(data, Display(Console(file=io.StringIO())))
    for name in ("postgres", "service", "replica-2"):
        marker = Path(f"{order}.{name}")
        supervisor.add(part(name, says.format(path=str(order), name=name), ready=marker.exists))
        await supervisor.until_ready(name)
    await supervisor.stop()
    assert order.read_text().split() == ["replica-2", "service", "postgres"]


async def test_a_part_that_will_not_stop_is_killed_with_all_below_it(data: DataFolder, supervisor: Supervisor) -> None:
    log = data.log("replica")
    supervisor.add(part("replica", STUBBORN, ready=lambda: log.read_bytes() == b"up\n", stop_seconds=0.3))
    await supervisor.until_ready("replica")
    known = recorded(data)["replica"]
    await supervisor.stop()
    assert known.find() is None
    assert "replica did not stop within 0.3 s and was killed" in shown(data)


async def test_a_program_that_is_missing_is_no_crash(supervisor: Supervisor, data: DataFolder) -> None:
    supervisor.add(Part("objects", ["/absent/program"], {}, part("", "").ready))
    await eventually(lambda: "objects ended with status 1" in shown(data))


def test_children_die_with_a_killed_supervisor(data: DataFolder) -> None:
    code = """
        import asyncio, pathlib, sys
        from deploy.local.display import Display
        from deploy.local.folder import DataFolder
        from deploy.local.supervisor import Supervisor
        from tests.deploy.test_supervisor import SLEEPS, part

        async def main():
            supervisor = Supervisor(DataFolder(pathlib.Path(sys.argv[1])), Display())
            supervisor.add(part("trainer", SLEEPS))
            await asyncio.sleep(600)

        asyncio.run(main())
    """
    root = Path(__file__).parents[2]
    argv = [sys.executable, "-c", textwrap.dedent(code), str(data.root)]
    process = subprocess.Popen(argv, cwd=root, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: "trainer" in recorded(data), what="the part runs")
        child = recorded(data)["trainer"]
        wait_until(lambda: SLEEPS in " ".join(psutil.Process(child.pid).cmdline()[-1:]), what="the guard is passed")
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: child.find() is None, what="the child is gone")


async def test_leftovers_are_ended_and_strangers_with_their_ids_are_not() -> None:
    mine, other = (subprocess.Popen([sys.executable, "-c", SLEEPS]) for _ in range(2))
    try:
        seen = processes.record(mine.pid)
        assert seen is not None
        reused = RecordedPart(pid=other.pid, started=seen.started - 3600)
        records = Records(supervisor=processes.record_self(), ready=True, parts={"service": seen, "trainer": reused})
        assert await processes.end_leftovers(records) == 1
        assert mine.wait(5) == -signal.SIGTERM
        assert other.poll() is None
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()


def test_a_process_is_known_by_its_start_as_well_as_its_id() -> None:
    started = psutil.Process().create_time()
    assert Recorded(pid=os.getpid(), started=started).find() is not None
    assert Recorded(pid=os.getpid(), started=started - 60).find() is None


def test_records_that_a_crash_cut_short_are_no_records(data: DataFolder) -> None:
    assert Records.load(data.processes) is None
    data.processes.write_text('{"supervisor": {"pi')
    assert Records.load(data.processes) is None
