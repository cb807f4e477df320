"""`weftd up`: takes the data folder, starts each part as early as its needs allow, says when all is ready, ends it."""

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from deploy.local import base_model, postgres, processes, secrets
from deploy.local.display import Display
from deploy.local.folder import DataFolder, StackError
from deploy.local.processes import Records
from deploy.local.stack import Stack, internal_parts
from deploy.local.supervisor import Supervisor
from service.contracts.base_model import BaseModelInfo

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Wanted:
    """What the operator asks for: where the API listens, over which base, with how many replicas."""

    port: int
    base: str | None
    replicas: int


async def up(data: DataFolder, wanted: Wanted, display: Display) -> None:
    """Runs the stack until a stop signal. Raises StackError where it cannot start."""
    data.create()
    with data.lock():
        processes.adopt_orphans()
        await _clean_up_after_a_killed_one(data, display)
        supervisor = Supervisor(data, display)
        main = asyncio.create_task(_run(data, wanted, supervisor, display))
        _stop_on_signals(main, supervisor)
        try:
            await main
        except asyncio.CancelledError:
            display.line("stopping")
        finally:
            await supervisor.stop()
            await processes.end(processes.below_self(), signal.SIGKILL, processes.KILL_SECONDS)
            data.forget_processes()


async def _run(data: DataFolder, wanted: Wanted, supervisor: Supervisor, display: Display) -> None:
    ports = data.ports(wanted.port, internal_parts(wanted.replicas))
    known = secrets.load_or_create(data.root)
    secrets.write_private(data.admin_key, known.admin_key + "\n")
    watching = asyncio.create_task(supervisor.watch())
    try:
        with display:
            facts = await _read_base(wanted.base, display)
            stack = Stack(data, ports, known, facts)
            await _start(stack, wanted.replicas, supervisor, display)
        supervisor.mark_ready()
        display.line(f"ready {stack.url}")
        await watching
    finally:
        watching.cancel()


async def _read_base(base: str | None, display: Display) -> BaseModelInfo:
    display.begin("base model")
    facts = await asyncio.to_thread(base_model.describe, base)
    display.done("base model")
    return facts


async def _start(stack: Stack, replicas: int, supervisor: Supervisor, display: Display) -> None:
    """A replica takes longest by far and needs the others only to sign on, so replicas go first."""
    parts = [stack.replica(number) for number in range(1, replicas + 1)]
    for part in parts:
        supervisor.add(part)
    supervisor.add(stack.objects())
    try:
        async with asyncio.TaskGroup() as starting:
            starting.create_task(_start_service(stack, supervisor, display))
            starting.create_task(supervisor.until_ready("objects"))
            for part in parts:
                starting.create_task(supervisor.until_ready(part.name))
            supervisor.add(stack.trainer())
            starting.create_task(supervisor.until_ready("trainer"))
    except* StackError as errors:
        raise errors.exceptions[0] from None


async def _start_service(stack: Stack, supervisor: Supervisor, display: Display) -> None:
    try:
        part, server = await asyncio.to_thread(stack.database)
    except (RuntimeError, OSError) as error:
        raise StackError(str(error)) from error
    supervisor.add(part)
    await supervisor.until_ready(part.name)
    display.begin("schema")
    await _bring_schema_up(server)
    display.done("schema")
    supervisor.add(stack.service(server))
    await supervisor.until_ready("service")


async def _bring_schema_up(server: postgres.Postgres) -> None:
    try:
        await server.create_roles()
        await server.create_database()
        await postgres.migrate(server.url("weft_owner"))
    except (RuntimeError, OSError, asyncpg.PostgresError) as error:
        raise StackError(str(error)) from error


async def _clean_up_after_a_killed_one(data: DataFolder, display: Display) -> None:
    records = Records.load(data.processes)
    if records is not None:
        ended = await processes.end_leftovers(records)
        if ended:
            display.line(f"ended {ended} processes that an earlier weftd left behind")
    _forget_stale_postmaster(data.postgres / "postmaster.pid")
    data.clear_temporary(make=True)
    data.trim_logs()


def _forget_stale_postmaster(lock: Path) -> None:
    """PostgreSQL refuses to start while any process of its user has the id in this file, even one that is no server."""
    if lock.exists():
        first = lock.read_text().split("\n")[0]
        if not first.isdecimal() or not processes.works_in(int(first), lock.parent):
            lock.unlink()


def _stop_on_signals(main: asyncio.Task[None], supervisor: Supervisor) -> None:
    """The first signal stops the stack in order; a second one ends every process at once."""
    loop = asyncio.get_running_loop()
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        main.cancel()
        if len(received) > 1:
            supervisor.kill()

    for number in STOPS:
        loop.add_signal_handler(number, stop, number)
