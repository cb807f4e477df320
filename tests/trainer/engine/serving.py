"""The engine's loop in the test's own process, given all commands at once, so that what runs beside what is certain."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from trainer.engine.engine import Engine
from trainer.engine.memory import Account
from trainer.engine.serve import Server
from trainer.protocol import JobFailed, Line, Start, Stop, Stopped, Trained

T = TypeVar("T", bound=Line)


class _AllEnded(BaseException):
    """Leads out of a loop that never returns."""


class Agent:
    """Takes what the engine says, until each of the jobs has ended."""

    def __init__(self, commands: Sequence[Start | Stop]) -> None:
        self.said: list[Line] = []
        self._open = {command.spec.job_id for command in commands if isinstance(command, Start)}

    def send(self, line: Line) -> None:
        self.said.append(line)
        if isinstance(line, Trained | JobFailed | Stopped):
            self._open.remove(line.job_id)
            if not self._open:
                raise _AllEnded

    def lines(self) -> Iterator[bytes]:
        """Nothing more, and no end, at which the process would end too."""
        threading.Event().wait()
        yield b""

    def of(self, kind: type[T], job_id: str | None = None) -> list[T]:
        return [
            line
            for line in self.said
            if isinstance(line, kind) and (job_id is None or getattr(line, "job_id", None) == job_id)
        ]


def serve(engine: Engine, account: Account, *commands: Start | Stop) -> Agent:
    """Everything said until every job of the commands has ended."""
    agent = Agent(commands)
    pipe: Any = agent
    server = Server(pipe, engine, account, "f", checkpoint_seconds=1e9)
    for command in commands:
        server._commands.put(command)
    with contextlib.suppress(_AllEnded):
        server.run()
    return agent
