"""One engine process as the runs see it: who is resident, what it says to each, and what its death means to them.

Owns residency. Which engine a job belongs into is for `quarantine` and `training`.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.agent.orders import Order
from trainer.children import OOM_SCORE, ChildGone, Supervisor
from trainer.protocol import (
    AwaitingMemory,
    CheckpointModelWritten,
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
    number: int
    """Which death of this engine it was."""
    blameless: bool
    """The agent ended it for a reason that counts against no job, or the job only waited in it."""


JobLine = Progress | CheckpointWritten | CheckpointModelWritten | AwaitingMemory | Trained | Stopped | JobFailed
Inbox = asyncio.Queue[JobLine | EngineDied | Order]


class EngineHost(Supervisor[EngineReady | JobLine]):
    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        fingerprint: str,
        ready_seconds: float,
        stall_seconds: float,
        oom_score: int = OOM_SCORE,
    ) -> None:
        super().__init__(name, argv, from_engine, ready_seconds, oom_score)
        self._fingerprint, self._stall_seconds = fingerprint, stall_seconds
        self._inboxes: dict[str, Inbox] = {}
        self._waiting: set[str] = set()
        """Resident jobs that wait for memory."""
        self._deaths = 0
        self._blameless = False
        self._changed = asyncio.Event()

    async def wait_ready(self) -> None:
        await self._until(lambda: self.ready)

    async def wait_up(self) -> None:
        """Raises EngineHopeless."""
        await self._until(lambda: self.ready or self.hopeless)
        if self.hopeless:
            raise EngineHopeless(f"The training {self.name} does not start on this machine; its log says why.")

    async def enter(self, job: str) -> Inbox:
        """Makes `job` resident, which sends it every line about itself. Raises EngineHopeless."""
        await self.wait_up()
        inbox = self._inboxes[job] = Inbox()
        return inbox

    def leave(self, job: str) -> None:
        self._inboxes.pop(job, None)
        self._waiting.discard(job)

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
            if isinstance(line, AwaitingMemory):
                self._waiting.add(line.job_id)
            else:
                self._waiting.discard(line.job_id)

    def died(self, reason: str) -> None:
        self._deaths += 1
        for job, inbox in self._inboxes.items():
            inbox.put_nowait(EngineDied(reason, self._deaths, self._blameless or job in self._waiting))
        self._inboxes.clear()
        self._waiting.clear()
        self._blameless = False
        self._announce()

    def kill_blameless(self, reason: str) -> None:
        """Ends the engine for a reason that counts against no job."""
        self._blameless = self._child is not None
        self.kill(reason)

    def give_up(self) -> None:
        """Its supervision has failed: nobody must wait for it."""
        self.ready, self.hopeless = False, True
        self.died("its supervision failed")

    def patience(self) -> float | None:
        """A job that waits for memory has nothing to say, so an engine of only such jobs may be silent."""
        return self._stall_seconds if len(self._inboxes) > len(self._waiting) else None

    async def _say(self, line: Start | Stop) -> None:
        try:
            await self.send(line)
        except ChildGone:
            # The job's inbox gets or already holds EngineDied, which says it better.
            return

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
