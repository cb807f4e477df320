"""One leased job from claim to finish.

Owns the order of things and how each ending is told. The parts do the work: keeper (lease), inputs, training, outputs,
reporter. Whatever happens here concerns this job alone.
"""

import asyncio
import logging
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from service.contracts.job import TERMINAL
from service.contracts.manifest import AdapterManifest
from service.contracts.worker import Finish, JobFailure, Lease
from trainer.agent.endings import JobError, WorkerUnfit, disk_full, is_no_space, job_error, no_space
from trainer.agent.inputs import InputGatherer
from trainer.agent.keeper import LeaseKeeper
from trainer.agent.orders import NOT_OURS, SPOILS_SAVING, Interrupted, Order, Orders
from trainer.agent.outputs import Outputs
from trainer.agent.reporter import Reporter
from trainer.agent.training import Training
from trainer.agent.worker import Worker
from trainer.control import LeaseLost, Refused, ServiceAway
from trainer.protocol import JobFailed, Trained

log = logging.getLogger(__name__)

FINISH_PATIENCE_SECONDS = 900.0


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
        self._over = False
        """The service has taken an outcome after which the job does not come back."""
        self._worker, self._lease, self._folder = worker, lease, folder
        self._keeper = LeaseKeeper(worker.service, lease, self.orders)
        self._reporter = Reporter(worker.service, lease, self.orders, worker.settings.report_seconds)
        self._outputs = Outputs(lease, worker.service, worker.store, self._reporter, self.orders)
        self._inputs = InputGatherer(lease, folder, worker.store, worker.preparer, self._reporter)
        self._training = Training(worker, lease, folder, self._keeper, self._reporter, self._outputs, self.orders)

    @property
    def suspect(self) -> bool:
        """It is, or waits to be, in an engine of its own."""
        return self._training.record.suspect

    async def run(self, predecessor: "LeaseRun | None") -> None:
        """Returns when nothing of the job is left in this process, its children or its folder.

        A `predecessor` is an earlier run of the same job that has to be gone first; the lease is kept meanwhile.
        """
        keeping = asyncio.create_task(self._keeper.run())
        keeping.add_done_callback(self._unkept)
        try:
            if predecessor:
                await self.orders.race(predecessor.gone.wait(), NOT_OURS)
            await self._finish(await self._reported(self._ending()))
        except (Interrupted, LeaseLost):
            log.info("job %s: given up (%s)", self.job, self.orders.current)
        finally:
            await self._outputs.close()
            keeping.cancel()
            await asyncio.wait({keeping})
            if self._over or not self.suspect:
                self._worker.quarantine.forget(self.job)
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
        await self.orders.race(self._keeper.confirmed.wait())
        end = await self._training.run(inputs)
        match end:
            case Trained():
                return await self._save(end)
            case JobFailed() if self.orders.current == "run":
                if end.failure.code == "internal_error" and disk_full(self._folder):
                    raise no_space()
                await self.orders.race(self._outputs.models.settle(), SPOILS_SAVING)
                raise JobError(end.failure)
            case _:
                return await self._stopped()

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
            await self.orders.race(self._outputs.models.settle(), SPOILS_SAVING)
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
        self._over = done.status in TERMINAL
        log.info("job %s %s at step %d", self.job, done.status, self._reporter.step)
