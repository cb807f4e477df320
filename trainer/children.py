"""Child processes that speak JSON lines: started in a group of their own, listened to, killed whole, restarted.

Owns processes and pipes. What a line means, and what a death means to jobs, is for the subclasses in `trainer.agent`.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter

from trainer.protocol import Line

log = logging.getLogger(__name__)

LINE_LIMIT = 64 << 20
LAUNCHER = str(Path(__file__).with_name("launcher.py"))
RESTART_SECONDS = 0.2
MAX_RESTART_SECONDS = 60.0
HOPELESS_STARTS = 3
OOM_SCORE = 500
"""When memory runs out the kernel should take the engine, whose jobs resume, and leave the agent that resumes them."""

L = TypeVar("L", bound=Line)


class ChildGone(Exception):
    """The child no longer reads; its death is told through the replies."""


class ProtocolBroken(Exception):
    """The child wrote something that is no message. The message of this error never quotes it."""


class Child(Generic[L]):
    """One process. `replies` parses what it writes."""

    def __init__(self, process: asyncio.subprocess.Process, replies: TypeAdapter[L]) -> None:
        assert process.stdin
        assert process.stdout
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout
        self._replies = replies
        # A grandchild that holds the pipe open must not hide that the child has ended.
        self._reaper = asyncio.create_task(self._reap())

    @classmethod
    async def start(cls, argv: Sequence[str], replies: TypeAdapter[L], oom_score: int) -> "Child[L]":
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", LAUNCHER, str(os.getpid()), str(oom_score), *argv),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT,
            start_new_session=True,
        )
        return cls(process, replies)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def send(self, line: Line) -> None:
        """Raises ChildGone."""
        try:
            self._stdin.write(line.model_dump_json().encode() + b"\n")
            await self._stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChildGone(str(error)) from error

    async def lines(self) -> AsyncIterator[L]:
        """Replies until the child closes its end. Raises ProtocolBroken."""
        try:
            while raw := await self._stdout.readline():
                yield self._replies.validate_json(raw)
        except ValueError as error:  # pydantic's ValidationError, or a line over the limit.
            raise ProtocolBroken(f"a line that is no message ({type(error).__name__})") from None

    def kill(self) -> None:
        """The whole group, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def end(self, seconds: float) -> int:
        """Closes the pipe, which asks a child to end, and kills what is left after `seconds`. Returns the exit code."""
        self._stdin.close()
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._reaper)
        except TimeoutError:
            self.kill()
        return await self._reaper

    async def _reap(self) -> int:
        code = await self._process.wait()
        self.kill()
        return code


class Supervisor(Generic[L]):
    """Keeps one child alive. A subclass says what to do with its lines, its silence and its death."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        replies: TypeAdapter[L],
        ready_seconds: float,
        oom_score: int = OOM_SCORE,
    ) -> None:
        self.name, self._oom_score = name, oom_score
        self.ready = False
        self.hopeless = False
        """It did not even come up, several times in a row."""
        self._argv, self._replies, self._ready_seconds = tuple(argv), replies, ready_seconds
        self._child: Child[L] | None = None
        self._heard = self._started = 0.0
        self._verdict: str | None = None
        self._reason = ""
        self._ending = False

    def heard(self, line: L) -> None:
        """One reply. Must be implemented; sets itself ready with `came_up`."""
        raise NotImplementedError

    def died(self, reason: str) -> None:
        """The child is gone and another one will be started."""
        raise NotImplementedError

    def patience(self) -> float | None:
        """Seconds of silence after which a child that is ready counts as hung; None while it may be silent."""
        raise NotImplementedError

    async def run(self) -> None:
        """Until `end`, or until cancelled, which ends the child at once."""
        failures = 0
        while not self._ending:
            came_up = await self._life()
            failures = 0 if came_up else failures + 1
            self.hopeless = failures >= HOPELESS_STARTS
            self.died(self._reason)
            await asyncio.sleep(RESTART_SECONDS if came_up else min(MAX_RESTART_SECONDS, 2.0**failures))

    def came_up(self) -> None:
        self.ready = True
        self.hopeless = False
        log.info("%s ready after %.1f s", self.name, time.monotonic() - self._started)

    def kill(self, reason: str) -> None:
        """Ends the child as hung or no longer wanted; it is restarted."""
        if self._child is not None and self._verdict is None:
            self._verdict = reason
            self._child.kill()

    async def send(self, line: Line) -> None:
        """Raises ChildGone."""
        if self._child is None:
            raise ChildGone(f"the {self.name} is not running")
        self._heard = time.monotonic()
        await self._child.send(line)

    async def end(self, seconds: float) -> None:
        """Asks the child to end, kills it after `seconds`, and starts no other."""
        self._ending = True
        if self._child is not None:
            await self._child.end(seconds)

    async def _life(self) -> bool:
        """From start to death; whether it was ever ready."""
        self._started = self._heard = time.monotonic()
        self._verdict = None
        child = self._child = await Child.start(self._argv, self._replies, self._oom_score)
        watch = asyncio.create_task(self._watch())
        came_up, complaint = False, None
        try:
            async for line in child.lines():
                self._heard = time.monotonic()
                self.heard(line)
                came_up = came_up or self.ready
        except ProtocolBroken as error:
            complaint = str(error)
        finally:
            watch.cancel()
            self.ready, self._child = False, None
            child.kill()
        code = await child.end(0)
        self._reason = self._verdict or complaint or _in_words(code)
        log.log(logging.INFO if self._ending else logging.WARNING, "%s ended: %s", self.name, self._reason)
        return came_up

    async def _watch(self) -> None:
        while True:
            limit = self.patience() if self.ready else self._ready_seconds
            if limit is not None and time.monotonic() - self._heard > limit:
                self.kill(f"silent for {limit:g} s")
            await asyncio.sleep(0.5 if limit is None else min(0.5, limit / 4))


def _in_words(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed from outside (signal 9); the kernel does that when memory runs out"
    return f"killed by signal {-code}" if code < 0 else f"exited with code {code}"
