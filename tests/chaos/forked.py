"""Real engine processes that cost milliseconds to start: forks of one that has imported everything and loaded the base.

Each serves its parent over pipes as the agent's child does. The parent keeps one thread, so that forking is safe.
"""

import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from trainer.engine.engine import Engine
from trainer.engine.memory import Account
from trainer.engine.serve import Server
from trainer.pipes import AgentPipe
from trainer.protocol import FromEngine, Line, from_engine

FINGERPRINT = "f"
END_SECONDS = 20.0


class ForkedEngine:
    """One engine process. Its parent must end it with `kill` or `end`."""

    def __init__(self, engine: Engine, account: Account, checkpoint_seconds: float, log: Path) -> None:
        commands, self._to = os.pipe()
        self._from, replies = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._to)
            os.close(self._from)
            _serve(engine, account, checkpoint_seconds, log, commands, replies)
        os.close(commands)
        os.close(replies)
        self._partial = b""
        self.gone = False
        """Whether it has said its last word."""

    def send(self, *lines: Line) -> None:
        data = memoryview(b"".join(line.model_dump_json().encode() + b"\n" for line in lines))
        while data:
            data = data[os.write(self._to, data) :]

    def lines(self, seconds: float) -> list[FromEngine]:
        """What it has said, once there is something, or after so long."""
        ready, _, _ = select.select([self._from], [], [], seconds)
        if not ready or self.gone:
            return []
        data = os.read(self._from, 1 << 16)
        self.gone = not data
        *whole, self._partial = (self._partial + data).split(b"\n")
        return [from_engine.validate_json(line) for line in whole]

    def kill(self) -> list[FromEngine]:
        """What it had said before."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._to)
        rest: list[FromEngine] = []
        while not self.gone:
            rest += self.lines(END_SECONDS)
        os.close(self._from)
        return rest

    def end(self) -> int:
        """Closes the pipe; its exit code, or that of a kill where it does not come in time."""
        os.close(self._to)
        deadline = time.monotonic() + END_SECONDS
        while not self.gone and time.monotonic() < deadline:
            self.lines(deadline - time.monotonic())
        if not self.gone:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self._from)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _serve(
    engine: Engine, account: Account, checkpoint_seconds: float, log: Path, commands: int, replies: int
) -> NoReturn:
    """In the child: never returns into the parent's program."""
    try:
        errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for ours, standard in ((commands, 0), (replies, 1), (errors, 2)):
            os.dup2(ours, standard)
            os.close(ours)
        sys.stdin = os.fdopen(0, closefd=False)
        Server(AgentPipe(), engine, account, FINGERPRINT, checkpoint_seconds).run()
    except BaseException:
        traceback.print_exc()
    os._exit(70)
