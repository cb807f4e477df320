"""One part of the stack as a process: started, watched, started again when it dies, ended with all below it."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local import guard, processes
from deploy.local.processes import RecordedPart

FIRST_DELAY, LAST_DELAY = 0.5, 30.0
CALM_SECONDS = 60.0
"""A part that ran for so long is taken to be well: its next death is a first one."""


@dataclass(frozen=True)
class Part:
    """How one process is started, known to be ready, and stopped."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    ready: Callable[[], Awaitable[bool]]
    setbacks: Callable[[], int] = lambda: 0
    """How often a child of its own has failed to come up, for a part that outlives such failures."""
    user: str = ""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 4.0


@dataclass
class Backoff:
    """How long to wait before starting again: doubled from death to death, from the start again after a calm time."""

    delay: float = field(default=FIRST_DELAY, init=False)

    def after(self, lived: float) -> float:
        if lived >= CALM_SECONDS:
            self.delay = FIRST_DELAY
        delay, self.delay = self.delay, min(LAST_DELAY, self.delay * 2)
        return delay


class Child:
    """Keeps one part running until `stop`. `keep` is its task; `changed` is called on every start and end."""

    def __init__(self, part: Part, log: Path, notice: Callable[[str], None], changed: Callable[[], None]) -> None:
        self.part = part
        self.deaths = 0
        self._log = log
        self._notice = notice
        self._changed = changed
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._seen: RecordedPart | None = None

    @property
    def pid(self) -> int | None:
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    def look(self) -> RecordedPart | None:
        """The processes of this part as they are now; remembered, so that orphans are known as its own."""
        if self.pid is not None:
            self._seen = processes.record(self.pid) or self._seen
        return self._seen

    async def keep(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            began = time.monotonic()
            ending = await self._run_once()
            await self._end_orphans()
            self._changed()
            if self._stopping.is_set():
                return
            self.deaths += 1
            delay = backoff.after(time.monotonic() - began)
            self._notice(f"{self.part.name} {ending}; starting it again in {delay:g} s (log: {self._log})")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    def give_up(self) -> None:
        """From here on, the part's end is no reason to start it again."""
        self._stopping.set()

    async def stop(self) -> None:
        """Ends the part and everything below it, by force after its grace."""
        self.give_up()
        pid = self.pid
        if pid is None:
            return
        self.look()
        main = processes.tree(pid)[:1]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, self.part.stop_signal)
        if not await processes.gone(main, self.part.stop_seconds):
            await processes.end(processes.tree(pid), signal.SIGKILL, processes.KILL_SECONDS)
            self._notice(f"{self.part.name} did not stop within {self.part.stop_seconds:g} s and was killed")

    async def _run_once(self) -> str:
        """From a start to its end. Returns how it ended, in words."""
        try:
            with self._log.open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *_guarded(self.part), env=dict(self.part.env), cwd="/", start_new_session=True,
                    stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=asyncio.subprocess.STDOUT,
                )  # fmt: skip
        except OSError as error:
            return f"could not be started ({error.strerror})"
        if self._stopping.is_set():
            self._process.kill()
        self.look()
        self._changed()
        code = await self._process.wait()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

    async def _end_orphans(self) -> None:
        """A restarted part must not meet its predecessor's children on its port or its files."""
        if self._seen is not None:
            await processes.end(processes.orphans(self._seen), signal.SIGTERM, 1.0)
        self._seen = None


def _guarded(part: Part) -> list[str]:
    wrapper = [sys.executable, "-I", "-S", str(Path(guard.__file__).resolve())]
    return [*wrapper, str(os.getpid()), str(int(part.stop_signal)), part.user, *part.argv]
