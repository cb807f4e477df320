"""One job in the engine: from prepared inputs to the line that ends it, in as many engine processes as that takes.

Owns where the job is resident and what each of its lines leads to. Whether a death counts against it, and when it has
an engine of its own, is decided in `quarantine`.
"""

import asyncio
import logging
import time
from pathlib import Path

from service.contracts.worker import Lease
from trainer.agent.endings import WorkerUnfit, job_error
from trainer.agent.engine import EngineDied, EngineHopeless, EngineHost, Inbox, JobLine
from trainer.agent.inputs import Inputs
from trainer.agent.keeper import LeaseKeeper
from trainer.agent.orders import Interrupted, Order, Orders
from trainer.agent.outputs import Outputs
from trainer.agent.quarantine import Record
from trainer.agent.reporter import Reporter
from trainer.agent.worker import Worker
from trainer.protocol import (
    AwaitingMemory,
    CheckpointModelWritten,
    CheckpointWritten,
    JobFailed,
    Progress,
    Start,
    Stopped,
    Trained,
)

log = logging.getLogger(__name__)

End = Trained | Stopped | JobFailed | EngineDied


class Training:
    def __init__(
        self,
        worker: Worker,
        lease: Lease,
        folder: Path,
        keeper: LeaseKeeper,
        reporter: Reporter,
        outputs: Outputs,
        orders: Orders,
    ) -> None:
        self._worker, self._lease, self._folder = worker, lease, folder
        self._keeper, self._reporter, self._outputs, self._orders = keeper, reporter, outputs, orders
        self._job = lease.spec.job_id
        self.record: Record = worker.quarantine.record(self._job)
        self._starts = 0
        self._yielding = False
        """It has been stopped only so that the next in line for quarantine has a turn."""

    async def run(self, inputs: Inputs) -> Trained | Stopped | JobFailed | None:
        """None where an order came while the job was in no engine. Raises JobError and WorkerUnfit."""
        try:
            while True:
                end = await self._reside(inputs)
                match end:
                    case EngineDied() if self._orders.current == "run":
                        self._judge(end)
                    case EngineDied():
                        return None
                    case Stopped() if self._yielding and self._orders.current == "run":
                        self._worker.quarantine.leave(self._job)
                    case _:
                        return end
        except Interrupted:
            return None
        finally:
            self._worker.quarantine.leave(self._job)

    async def _reside(self, inputs: Inputs) -> End:
        """From the Start to the line that ends it in one engine process."""
        try:
            engine = await self._engine()
            inbox = await self._orders.race(engine.enter(self._job))
        except EngineHopeless as error:
            raise WorkerUnfit(str(error)) from error
        try:
            await engine.begin(self._start(inputs))
            self._reporter.phase("training")
            self._orders.listen(inbox.put_nowait)
            return await self._attend(engine, inbox)
        finally:
            self._orders.listen(None)
            engine.leave(self._job)

    async def _engine(self) -> EngineHost:
        """The shared one, or for a suspect its own as soon as it has its turn."""
        self._yielding = False
        if not self.record.suspect:
            return self._worker.engine
        self._reporter.phase("waiting")
        own = await self._orders.race(self._worker.quarantine.enter(self._job, self.record))
        if own is None:
            log.info("job %s: cleared, back to the shared engine", self._job)
            text = "Another job was found to end the training engine; this one goes on beside the others."
            self._reporter.note(text, code="quarantine_over")
        return own or self._worker.engine

    def _start(self, inputs: Inputs) -> Start:
        """Each start has a folder of its own: a dead engine may have left half a file in the last one."""
        self._starts += 1
        work = self._folder / f"engine-{self._starts}"
        work.mkdir()
        checkpoint = self._outputs.newest_checkpoint or inputs.checkpoint_dir
        return Start(
            spec=self._lease.spec,
            training_dir=str(inputs.training_dir),
            validation_dir=str(inputs.validation_dir) if inputs.validation_dir else None,
            checkpoint_dir=str(checkpoint) if checkpoint else None,
            adapter_dir=str(inputs.adapter_dir) if inputs.adapter_dir else None,
            work_dir=str(work),
        )

    async def _attend(self, engine: EngineHost, inbox: Inbox) -> End:
        patience = asyncio.timeout(None)
        try:
            async with patience:
                while True:
                    match await inbox.get():
                        case Trained() | Stopped() | JobFailed() as line:
                            self._reporter.counts(line.step, line.trained_tokens)
                            return line
                        case EngineDied() as death:
                            return death
                        case str() as order:
                            patience.reschedule(time.monotonic() + self._stop_seconds(order))
                            await engine.stop(self._job, save=order in ("pause", "release"))
                        case line:
                            self._note(line)
                            if isinstance(line, CheckpointWritten) and self._gives_way():
                                patience.reschedule(time.monotonic() + self._worker.settings.stall_seconds)
                                await engine.stop(self._job, save=False)
        except TimeoutError:
            log.warning("job %s: did not stop in time; the engine is ended", self._job)
            engine.kill_blameless("a job did not stop in time")
            return EngineDied("a job did not stop in time", number=0, blameless=True)

    def _gives_way(self) -> bool:
        """Whether its turn in quarantine is over, now that it has a checkpoint to go on from. True once."""
        if self._yielding or not self.record.suspect or not self._worker.quarantine.wanted:
            return False
        self._yielding = self._orders.current == "run"
        return self._yielding

    def _note(self, line: JobLine) -> None:
        match line:
            case Progress():
                self._reporter.phase("training")
                self._reporter.total_steps = line.total_steps
                self._reporter.counts(line.step, line.trained_tokens)
                self._reporter.add(line.events)
            case CheckpointWritten():
                self._worker.quarantine.progressed(self.record)
                self._outputs.checkpoint(line)
            case CheckpointModelWritten():
                self._outputs.models.add(line)
            case AwaitingMemory():
                self._reporter.await_memory(line.needed_bytes, line.free_bytes)
            case _:
                raise TypeError(type(line).__name__)

    def _stop_seconds(self, order: Order) -> float:
        """How long the engine may take. Half of the margin at a fence: the lease must not run out on a running job."""
        return self._keeper.margin / 2 if order == "fenced" else self._worker.settings.stall_seconds

    def _judge(self, death: EngineDied) -> None:
        """After an engine death: go on in the same lease, or give up. Raises JobError."""
        record = self.record
        before = record.suspect
        if not death.blameless and self._worker.quarantine.died(record, death.number):
            raise job_error(
                "engine_crashed",
                f"The training engine ended {record.deaths} times while this job ran, the last time with no other job "
                f"beside it ({death.reason}). Try a smaller batch_size, lora_rank or max_seq_length, or shorter "
                "examples; if that does not help, ask the operator for the trainer's log.",
            )
        log.warning("job %s: engine restarted under it (death %d)", self._job, record.deaths)
        self._reporter.note(
            "The training engine was restarted; the job goes on from its last checkpoint.",
            "warn",
            code="engine_restarted",
            reason=death.reason,
        )
        if record.suspect and not before:
            text = f"The training engine ended {record.deaths} times while this job ran. It goes on in one of its own."
            self._reporter.note(text, "warn", code="quarantined")
