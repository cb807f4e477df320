"""The command line as a process, in a terminal and in a pipe, with a tenant of a real service to work for."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest

from service.contracts.ids import JobId
from service.contracts.worker import Event, Lease
from tests.clients.cli.terminal import WEFT, Terminal, environment
from tests.clients.conftest import Tenant, finish, uploaded
from tests.service.conftest import Service
from tests.service.stage import Stage
from weft.cli import app

STEPS = 60
NAMES = (f"bot-{number}" for number in itertools.count())
EVENTS_A_REPORT = 20


@dataclass(frozen=True)
class Ran:
    """How a command ended that ran in a pipe."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def cells(self) -> list[list[str]]:
        return [line.split("\t") for line in self.out.splitlines()]


@dataclass
class Shell:
    """Runs `weft` as a person or a script of this environment would."""

    env: dict[str, str]
    folder: Path

    def run(self, *arguments: str, given: str = "", **variables: str) -> Ran:
        """In a pipe, within this process: starting one for each of many commands would take most of the time."""
        before, there = dict(os.environ), Path.cwd()
        out, err, stdin = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(3))
        stdin.write(given)
        stdin.seek(0)
        os.environ.clear()
        os.environ.update(self.env | variables)
        os.chdir(self.folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch("sys.stdin", stdin):
                status = app.run(list(arguments))
        finally:
            os.environ.clear()
            os.environ.update(before)
            os.chdir(there)
        return Ran(status, *(_written(stream) for stream in (out, err)))

    def process(self, *arguments: str, given: str = "", **variables: str) -> Ran:
        """In a pipe, as a process of its own."""
        ended = subprocess.run(
            (*WEFT, *arguments),
            env=self.env | variables,
            cwd=self.folder,
            input=given,
            capture_output=True,
            text=True,
            timeout=90,
        )
        return Ran(ended.returncode, ended.stdout, ended.stderr)

    def ok(self, *arguments: str, given: str = "") -> Ran:
        ran = self.run(*arguments, given=given)
        assert ran.status == 0, ran.err
        return ran


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return cast("io.BytesIO", stream.buffer).getvalue().decode()


Open = Callable[..., Terminal]


@pytest.fixture
def shell(service: Service, tenant: Tenant, tmp_path: Path) -> Shell:
    admin = service.settings.admin_key.get_secret_value()
    env = environment(WEFT_BASE_URL=f"{service.url}/v1", WEFT_API_KEY=tenant.key, WEFT_ADMIN_KEY=admin)
    return Shell(env, tmp_path)


@pytest.fixture
def alone(tmp_path: Path) -> Shell:
    """Without a service and without a key."""
    return Shell(environment(), tmp_path)


@pytest.fixture
def opened() -> Iterator[Callable[..., Terminal]]:
    """Opens terminals of a shell, each with one command in it."""
    terminals: list[Terminal] = []

    def start(shell: Shell, *arguments: str, width: int = 100, height: int = 40, **variables: str) -> Terminal:
        made = Terminal((*WEFT, *arguments), shell.env | variables, shell.folder, width, height)
        terminals.append(made)
        return made

    yield start
    for terminal in terminals:
        terminal.close()


@pytest.fixture
def bot(service: Service, stage: Stage, tenant: Tenant, shell: Shell) -> str:
    """An adapter with two versions, made by the command line."""
    name = next(NAMES)
    for number in (1, 2):
        job = tenant.client.fine_tuning.jobs.create(model="weft-tiny", training_file=uploaded(tenant), seed=number)
        finish(service, stage, service.call(stage.claimed()))
        shell.ok(
            *(("adapters", "create", name, "--from", job.id) if number == 1 else ("adapters", "add", name, job.id))
        )
    return name


def learn(service: Service, stage: Stage, lease: Lease, first: int = 1, last: int = STEPS) -> None:
    """A worker's reports of steps, with a falling loss and now and then an evaluation."""
    events = [learned(lease.spec.job_id, step) for step in range(first, last + 1)]
    for start in range(0, len(events), EVENTS_A_REPORT):
        part = tuple(events[start : start + EVENTS_A_REPORT])
        service.call(stage.report(lease, step=first + start + len(part) - 1, events=part))


def learned(job: JobId, step: int) -> Event:
    loss = 0.3 + 2.2 / (1 + 0.15 * step)
    data: dict[str, Any] = {"step": step, "total_steps": STEPS, "train_loss": loss, "tokens_per_second": 5120.0}
    if step % (STEPS // 6) == 0:
        data["full_valid_loss"] = loss + 0.2
    number = hashlib.sha256(f"{job}{step}".encode()).hexdigest()[:24]
    return Event(id=f"ftevent-{number}", type="metrics", message=f"Step {step}/{STEPS}", data=data)
