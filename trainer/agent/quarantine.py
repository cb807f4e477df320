"""An engine process for one job alone, and the rule that finds the job which kills engines without failing another.

1. A job that saw the shared engine die twice, without a newer checkpoint between, is a *suspect*. It leaves the shared
   engine, where everybody else goes on, and waits in line with its lease kept.
2. The line is served one at a time in a process of its own, newest claim first, because old residents have shown that
   they can live in an engine. A turn lasts until the job ends, but passes on at its next checkpoint while others wait.
3. A death of that process is its job's alone. The third one without a newer checkpoint, the two that made it a suspect
   included, fails the job: it is *convicted*, and what made it a suspect is explained.
4. A suspect all of whose deaths are explained goes back to the shared engine once it has made a newer checkpoint alone.
   Every other one ends in quarantine.

So no job fails for a death that it was not alone at, and the one that kills engines never returns to the others. Where
several jobs shared two deaths, each good one waits at most for a checkpoint of each suspect before it is on its way.
Deaths that the agent brought about count for nobody.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from trainer.agent.engine import EngineHost

log = logging.getLogger(__name__)

SUSPICIOUS_DEATHS = 2
FATAL_DEATHS = 3
END_SECONDS = 5.0


@dataclass
class Record:
    """What one job has seen of engine deaths; `number` orders the jobs by their claims."""

    number: int
    together: set[int] = field(default_factory=set[int])
    """Deaths of the shared engine, by number, since the newest checkpoint."""
    alone: int = 0
    """Deaths of its own engine since then."""
    suspected_of: frozenset[int] = frozenset()
    proven: bool = False
    """As a suspect it has made a newer checkpoint, alone."""
    turns: int = 0

    @property
    def suspect(self) -> bool:
        return bool(self.suspected_of)

    @property
    def deaths(self) -> int:
        return len(self.together) + self.alone


class Quarantine:
    """`changed` is called whenever the number of suspects may have."""

    def __init__(self, shared: EngineHost, new_host: Callable[[], EngineHost], changed: Callable[[], None]) -> None:
        self._shared, self._new_host, self._on_change = shared, new_host, changed
        self._numbers = itertools.count()
        self._records: dict[str, Record] = {}
        self._explained: set[int] = set()
        self._line: dict[str, Record] = {}
        self._holder: str | None = None
        self._host: EngineHost | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def record(self, job: str) -> Record:
        """Of a job that is claimed. A suspect that comes back under a new lease is still one."""
        if job not in self._records:
            self._records[job] = Record(next(self._numbers))
        return self._records[job]

    def forget(self, job: str) -> None:
        self._records.pop(job, None)

    def died(self, record: Record, number: int) -> bool:
        """Death `number` of the engine that the job was in counts against it; true where the job is convicted."""
        if record.suspect:
            record.alone += 1
            if record.deaths >= FATAL_DEATHS:
                self._explained |= record.suspected_of
                self._announce()
                return True
            return False
        record.together.add(number)
        if len(record.together - self._explained) >= SUSPICIOUS_DEATHS:
            record.suspected_of = frozenset(record.together)
            self._announce()
        return False

    def progressed(self, record: Record) -> None:
        """The job has made a newer checkpoint."""
        record.together.clear()
        record.alone = 0
        record.proven = record.suspect

    @property
    def wanted(self) -> bool:
        """Somebody waits for a turn."""
        return bool(self._line)

    async def enter(self, job: str, record: Record) -> EngineHost | None:
        """The job's own engine, when it is its turn; None if it has been cleared and is no suspect any more.

        Never before the shared engine is up again, which goes first where memory does not hold both. Raises
        EngineHopeless.
        """
        if self._holder == job:
            return self._host
        self._line[job] = record
        try:
            await self._shared.wait_up()
            while not self._cleared(record):
                if self._holder is None and self._closing is None and min(self._line, key=self._place) == job:
                    return self._begin_turn(job, record)
                await self._changed.wait()
        finally:
            del self._line[job]
            self._announce()
        record.suspected_of, record.proven = frozenset(), False
        return None

    def leave(self, job: str) -> None:
        """Ends the job's turn, if it has one. The process is kept for the next in line and ends with the last."""
        if self._holder == job:
            self._holder = None
            if not self._line and self._host:
                self._closing = asyncio.create_task(self._close(END_SECONDS))
            self._announce()

    async def end(self, seconds: float) -> None:
        """Ends the process, if there is one. One that is ending already is waited for no longer than `seconds`."""
        if self._closing:
            await asyncio.wait({self._closing}, timeout=seconds)
        else:
            await self._close(seconds)

    def _begin_turn(self, job: str, record: Record) -> EngineHost:
        self._holder = job
        record.turns += 1
        if self._host is None:
            self._host = self._new_host()
            self._supervision = asyncio.create_task(self._supervise(self._host))
        return self._host

    async def _supervise(self, host: EngineHost) -> None:
        try:
            await host.run()
        except Exception:
            log.exception("the supervision of the engine in quarantine failed")
            host.give_up()

    async def _close(self, seconds: float) -> None:
        host, supervision = self._host, self._supervision
        self._host = self._supervision = None
        if host and supervision:
            await host.end(seconds)
            supervision.cancel()
            await asyncio.wait({supervision})
        self._closing = None
        self._announce()

    def _cleared(self, record: Record) -> bool:
        return record.proven and record.suspected_of <= self._explained

    def _place(self, job: str) -> tuple[int, int]:
        record = self._line[job]
        return record.turns, -record.number

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._on_change()
