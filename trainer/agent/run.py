"""One leased job from claim to finish.

Owns the order of things and how each ending is told. The parts do the work: keeper (lease), inputs, engine, outputs,
reporter. Whatever happens here concerns this job alone.
"""

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp

from service.contracts.manifest import AdapterManifest
from service.contracts.worker import Finish, JobFailure, Lease
from trainer.agent.endings import JobError, WorkerUnfit, disk_full, is_no_space, job_error, no_space
from trainer.agent.engine import EngineDied, EngineHopeless, EngineHost, Inbox, JobLine
from trainer.agent.inputs import InputGatherer, Inputs
from trainer.agent.keeper import LeaseKeeper
from trainer.agent.orders import NOT_OURS, SPOILS_SAVING, Interrupted, Order, Orders
from trainer.agent.outputs import Outputs
from trainer.agent.preparer import PreparerHost
from trainer.agent.reporter import Reporter
from trainer.control import LeaseLost, Refused, ServiceAway, ServiceClient
from trainer.protocol import CheckpointWritten, JobFailed, Progress, Start, Stopped, Trained
from trainer.settings import TrainerSettings

log = logging.getLogger(__name__)

FINISH_PATIENCE_SECONDS = 900.0
DEATHS_TOGETHER = 2
"""So often a job may see the engine die without a newer checkpoint before it must prove itself alone."""


@dataclass(frozen=True)
class Worker:
    """What the runs of one agent share."""

    settings: TrainerSettings
    service: ServiceClient
    store: aiohttp.ClientSession
    preparer: PreparerHost
    engine: EngineHost


@dataclass(frozen=True)
class Ending:
    outcome: Literal["succeeded", "failed", "cancelled", "paused", "released"]
    adapter: AdapterManifest | None = None
    failure: JobFailure | None = None


ENDING_OF: dict[Order, Ending] = {
    "release": Ending("released"),
    "pause": Ending("paused"),
    "cancel": Ending("cancelled"),
}


class LeaseRun:
    """`unfit` is called when this worker cannot do the job, before it is handed back for others to claim."""

    def __init__(self, worker: Worker, lease: Lease, folder: Path, unfit: Callable[[], None]) -> None:
        self.orders = Orders()
        self._unfit = unfit
        self.gone = asyncio.Event()
        """Set by whoever runs it, after `run` has ended."""
        self.job = lease.spec.job_id
        self._worker, self._lease, self._folder = worker, lease, folder
        self._keeper = LeaseKeeper(worker.service, lease, self.orders)
        self._reporter = Reporter(worker.service, lease, self.orders, worker.settings.report_seconds)
        self._outputs = Outputs(lease, worker.service, worker.store, self._reporter, self.orders)
        self._inputs = InputGatherer(lease, folder, worker.store, worker.preparer, self._reporter)
        self._deaths = 0
        self._starts = 0

    async def run(self, predecessor: "LeaseRun | None") -> None:
        """Returns when nothing of the job is left in this process, its children or its folder.

        A `predecessor` is an earlier run of the same job that has to be gone first; the lease is kept meanwhile.
        """
        keeping = asyncio.create_task(self._keeper.run())
        keeping.add_done_callback(self._unkept)
        try:
            await self.orders.race(self._keeper.confirmed.wait(), NOT_OURS)
            if predecessor:
                await self.orders.race(predecessor.gone.wait(), NOT_OURS)
            await self._finish(await self._reported(self._ending()))
        except (Interrupted, LeaseLost):
            log.info("job %s: given up (%s)", self.job, self.orders.current)
        finally:
            await self._outputs.close()
            keeping.cancel()
            await asyncio.wait({keeping})
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def _unkept(self, keeping: "asyncio.Task[None]") -> None:
        """Without its keeper a lease must not be trusted, whatever ended the keeper."""
        if not keeping.cancelled():
            if error := keeping.exception():
                log.error("job %s: the lease's keeper failed", self.job, exc_info=error)
            self.orders.give("fenced")

    async def _reported(self, work: Coroutine[Any, Any, Ending]) -> Ending:
        """Reports go on while `work` does, and are over before the last word is sent."""
        reporting = asyncio.create_task(self._reporter.run())
        try:
            return await work
        finally:
            reporting.cancel()
            await asyncio.wait({reporting})

    async def _ending(self) -> Ending:
        """Raises Interrupted where nothing may be told."""
        try:
            self._folder.mkdir(parents=True)
            return await self._work()
        except Interrupted:
            if self.orders.current in NOT_OURS:
                raise
            return ENDING_OF[self.orders.current]
        except JobError as error:
            log.info("job %s: failed: %s", self.job, error.failure.code)
            return Ending("failed", failure=error.failure)
        except OSError as error:
            if not is_no_space(error):
                raise
            return self._released(no_space())
        except WorkerUnfit as error:
            return self._released(error)

    def _released(self, reason: WorkerUnfit) -> Ending:
        log.warning("job %s: released: %s", self.job, reason)
        self._unfit()
        self._reporter.note(str(reason), "warn", code="worker_unfit")
        return Ending("released")

    async def _work(self) -> Ending:
        inputs = await self.orders.race(self._inputs.gather())
        while True:
            end = await self._reside(inputs)
            match end:
                case EngineDied() if self.orders.current == "run":
                    self._judge(end)
                case Trained():
                    return await self._save(end)
                case JobFailed() if self.orders.current == "run":
                    if end.failure.code == "internal_error" and disk_full(self._folder):
                        raise no_space()
                    raise JobError(end.failure)
                case _:
                    return await self._stopped()

    async def _reside(self, inputs: Inputs) -> Trained | Stopped | JobFailed | EngineDied:
        """In the engine, from the Start to the line that ends it."""
        engine = self._worker.engine
        try:
            inbox = await self.orders.race(engine.enter(self.job, alone=self._deaths >= DEATHS_TOGETHER))
        except EngineHopeless as error:
            raise WorkerUnfit(str(error)) from error
        try:
            await engine.begin(self._start(inputs))
            self._reporter.phase("training")
            self.orders.listen(inbox.put_nowait)
            return await self._attend(inbox)
        finally:
            self.orders.listen(None)
            engine.leave(self.job)

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
            work_dir=str(work),
        )

    async def _attend(self, inbox: Inbox) -> Trained | Stopped | JobFailed | EngineDied:
        patience = asyncio.timeout(None)
        try:
            async with patience:
                while True:
                    match await inbox.get():
                        case Progress() | CheckpointWritten() as line:
                            self._note(line)
                        case Trained() | Stopped() | JobFailed() as line:
                            self._reporter.counts(line.step, line.trained_tokens)
                            return line
                        case EngineDied() as death:
                            return death
                        case order:
                            patience.reschedule(time.monotonic() + self._stop_seconds(order))
                            await self._worker.engine.stop(self.job, save=order in ("pause", "release"))
        except TimeoutError:
            log.warning("job %s: did not stop in time; the engine is ended", self.job)
            self._worker.engine.kill_blameless("a job did not stop in time")
            return EngineDied("a job did not stop in time", blameless=True)

    def _note(self, line: JobLine) -> None:
        if isinstance(line, Progress):
            self._reporter.total_steps = line.total_steps
            self._reporter.counts(line.step, line.trained_tokens)
            self._reporter.add(line.events)
        elif isinstance(line, CheckpointWritten):
            self._deaths = 0
            self._worker.engine.acquit(self.job)
            self._outputs.checkpoint(line)

    def _stop_seconds(self, order: Order) -> float:
        """How long the engine may take. Half of the margin at a fence: the lease must not run out on a running job."""
        return self._keeper.margin / 2 if order == "fenced" else self._worker.settings.stall_seconds

    def _judge(self, death: EngineDied) -> None:
        """After an engine death: go on in the same lease, or give up. Raises JobError."""
        self._deaths += not death.blameless
        if self._deaths > DEATHS_TOGETHER:
            raise job_error(
                "engine_crashed",
                f"The training engine ended {self._deaths} times while this job ran, the last time with no other job "
                f"beside it ({death.reason}). Try a smaller batch_size, lora_rank or max_seq_length, or shorter "
                "examples; if that does not help, ask the operator for the trainer's log.",
            )
        log.warning("job %s: engine restarted under it (death %d)", self.job, self._deaths)
        self._reporter.note(
            "The training engine was restarted; the job goes on from its last checkpoint.",
            "warn",
            code="engine_restarted",
            reason=death.reason,
        )

    async def _stopped(self) -> Ending:
        order = self.orders.current
        if order in NOT_OURS:
            raise Interrupted(order)
        if order == "run":
            raise RuntimeError("the engine stopped a job that nobody asked it to stop")
        if order != "cancel":
            self._reporter.phase("saving")
            await self.orders.race(self._outputs.settle(), SPOILS_SAVING)
        return ENDING_OF[self.orders.current]

    async def _save(self, trained: Trained) -> Ending:
        """A job that is trained is kept, even if it was to pause. Only its cancellation or a lost lease stops this."""
        self._reporter.phase("saving")
        try:
            manifest = await self.orders.race(self._outputs.adapter(trained), SPOILS_SAVING)
        except Refused as error:
            raise job_error("adapter_refused", f"The trained adapter was refused: {error.message}") from error
        return Ending("succeeded", adapter=manifest)

    async def _finish(self, ending: Ending) -> None:
        self._reporter.phase("finished")
        finish = Finish(
            epoch=self._lease.epoch,
            outcome=ending.outcome,
            trained_tokens=self._reporter.trained_tokens,
            step=self._reporter.step,
            adapter=ending.adapter,
            failure=ending.failure,
            events=await self.orders.race(self._reporter.rest(), NOT_OURS),
        )
        try:
            done = await self.orders.race(
                self._worker.service.finish(self.job, finish, FINISH_PATIENCE_SECONDS), NOT_OURS
            )
        except Refused as error:
            log.warning("job %s: finish as %s refused: %s", self.job, ending.outcome, error)
            if ending.outcome == "succeeded" and error.code == "upload_incomplete":
                # Storage lost what it had taken. The job resumes from its checkpoint and stores its adapter anew.
                await self._finish(Ending("released"))
            elif ending.outcome == "succeeded":
                failure = JobFailure(code="adapter_refused", message=f"The adapter was refused: {error.message}"[:2000])
                await self._finish(Ending("failed", failure=failure))
            return
        except ServiceAway as error:
            log.warning("job %s: finish as %s not delivered: %s", self.job, ending.outcome, error)
            return
        log.info("job %s %s at step %d", self.job, done.status, self._reporter.step)
