"""The engine as the runs see it: who is resident, what it says to each, and what its death means to them.

Owns residency. A job that was resident at several deaths is let in alone, so that the one which kills the engine is
found without failing its neighbours.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.agent.orders import Order
from trainer.children import ChildGone, Supervisor
from trainer.protocol import (
    CheckpointWritten,
    EngineReady,
    JobFailed,
    Progress,
    Start,
    Stop,
    Stopped,
    Trained,
    from_engine,
)


class WrongBase(Exception):
    """The engine loaded another base than the settings name; no restart mends that."""


class EngineHopeless(Exception):
    """The engine does not come up on this machine."""


@dataclass(frozen=True)
class EngineDied:
    reason: str
    blameless: bool
    """The agent ended it for a reason that counts against no job."""


JobLine = Progress | CheckpointWritten | Trained | Stopped | JobFailed
Inbox = asyncio.Queue[JobLine | EngineDied | Order]


class EngineHost(Supervisor[EngineReady | JobLine]):
    def __init__(self, argv: Sequence[str], fingerprint: str, ready_seconds: float, stall_seconds: float) -> None:
        super().__init__("engine", argv, from_engine, ready_seconds)
        self._fingerprint, self._stall_seconds = fingerprint, stall_seconds
        self._inboxes: dict[str, Inbox] = {}
        self._alone: str | None = None
        self._suspects_waiting = 0
        self._blameless = False
        self._changed = asyncio.Event()

    async def wait_open(self) -> None:
        """Until another job would be let in at once."""
        await self._until(self._open)

    async def enter(self, job: str, alone: bool) -> Inbox:
        """Makes `job` resident, which sends it every line about itself. Raises EngineHopeless."""
        self._suspects_waiting += alone
        try:
            await self._until(lambda: self.hopeless or (self.ready and not self._inboxes if alone else self._open()))
        finally:
            self._suspects_waiting -= alone
            self._announce()
        if self.hopeless:
            raise EngineHopeless("The training engine does not start on this machine; its log says why.")
        inbox = self._inboxes[job] = Inbox()
        if alone:
            self._alone = job
        return inbox

    def leave(self, job: str) -> None:
        self._inboxes.pop(job, None)
        self.acquit(job)

    def acquit(self, job: str) -> None:
        """It made progress alone; the others may come back."""
        if self._alone == job:
            self._alone = None
        self._announce()

    async def begin(self, start: Start) -> None:
        await self._say(start)

    async def stop(self, job: str, save: bool) -> None:
        await self._say(Stop(job_id=job, save=save))

    def heard(self, line: EngineReady | JobLine) -> None:
        if isinstance(line, EngineReady):
            if line.base_fingerprint != self._fingerprint:
                raise WrongBase(
                    f"the base has fingerprint {line.base_fingerprint}, the settings say {self._fingerprint}: "
                    "correct WEFT_TRAINER_BASE_SOURCE or WEFT_TRAINER_BASE_FINGERPRINT"
                )
            self.came_up()
            self._announce()
        elif line.job_id in self._inboxes:
            self._inboxes[line.job_id].put_nowait(line)

    def died(self, reason: str) -> None:
        for inbox in self._inboxes.values():
            inbox.put_nowait(EngineDied(reason, self._blameless))
        self._inboxes.clear()
        self._alone, self._blameless = None, False
        self._announce()

    def kill_blameless(self, reason: str) -> None:
        """Ends the engine for a reason that counts against no job."""
        self._blameless = self._child is not None
        self.kill(reason)

    def patience(self) -> float | None:
        return self._stall_seconds if self._inboxes else None

    async def _say(self, line: Start | Stop) -> None:
        try:
            await self.send(line)
        except ChildGone:
            # The job's inbox gets or already holds EngineDied, which says it better.
            return

    def _open(self) -> bool:
        return self.ready and self._alone is None and not self._suspects_waiting

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
