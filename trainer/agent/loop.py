"""The agent itself: children kept warm, jobs claimed while there is room, everything handed back at the end.

Owns which runs exist and which engines. Each job's course is its LeaseRun's.
"""

import asyncio
import logging
import time
from pathlib import Path

import aiohttp

from service.contracts.worker import ClaimRequest, Lease
from trainer.agent.engine import EngineHost
from trainer.agent.preparer import PreparerHost
from trainer.agent.quarantine import Quarantine
from trainer.agent.run import LeaseRun
from trainer.agent.transfers import Transfers
from trainer.agent.workdir import job_folder
from trainer.agent.worker import Worker
from trainer.children import OOM_SCORE
from trainer.commands import ChildCommands
from trainer.control import ServiceAway, ServiceClient, pause
from trainer.settings import TrainerSettings
from trainer.transfer import new_store_session
from trainer.transfer_client import TransferClient

log = logging.getLogger(__name__)

UNFIT_PAUSE_SECONDS = 30.0
"""How long an agent that had to hand a job back leaves the queue to others."""

MOST_RUNS = 2
"""So many times `jobs` may be held at once when some of them are suspects."""

QUARANTINE_OOM_SCORE = 1000
"""The shared engine must not be the one that goes when memory does not hold two."""

CHILD_END_PART = 0.2
"""Part of `stop_seconds` kept for the children's own end."""


class Agent:
    """`stop` may be called from a signal handler; `run` returns when all is handed back."""

    def __init__(self, settings: TrainerSettings, commands: ChildCommands, jobs: Path) -> None:
        self._settings, self._commands, self._jobs = settings, commands, jobs
        self._room = asyncio.Event()
        self._preparer = PreparerHost(commands.preparer, settings.ready_seconds, settings.stall_seconds)
        self._engine = self._new_engine("engine", OOM_SCORE)
        self._quarantine = Quarantine(
            self._engine, lambda: self._new_engine("engine in quarantine", QUARANTINE_OOM_SCORE), self._room.set
        )
        self._runs: dict[str, LeaseRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._not_before = 0.0

    def _new_engine(self, name: str, oom_score: int) -> EngineHost:
        settings = self._settings
        return EngineHost(
            name,
            self._commands.engine,
            settings.base_fingerprint,
            settings.ready_seconds,
            settings.stall_seconds,
            oom_score,
        )

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> None:
        """Raises what no restart would mend: WrongBase, or a Refused claim."""
        async with aiohttp.ClientSession() as session, new_store_session() as store:
            service = ServiceClient(session, self._settings.service_url, self._settings.worker_token)
            worker = Worker(self._settings, service, store, self._preparer, self._engine, self._quarantine)
            children = [asyncio.create_task(child.run()) for child in (self._preparer, self._engine)]
            claims = asyncio.create_task(self._claim_forever(worker))
            transfers = asyncio.create_task(self._transfer_forever(session, store))
            stop = asyncio.create_task(self._stop.wait())
            essential = {claims, transfers, *children}
            try:
                await asyncio.wait({stop, *essential}, return_when=asyncio.FIRST_COMPLETED)
                claims.cancel()
                transfers.cancel()
                await self._hand_back()
            finally:
                for task in (stop, claims, transfers, *children):
                    task.cancel()
                ended = await asyncio.gather(*essential, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _claim_forever(self, worker: Worker) -> None:
        failures = 0
        while True:
            await self._wait_for_room()
            request = ClaimRequest(
                worker=self._settings.worker_name,
                base_model=self._settings.base_model,
                base_fingerprint=self._settings.base_fingerprint,
                wait_seconds=self._settings.claim_wait_seconds,
            )
            try:
                lease = await worker.service.claim(request)
            except ServiceAway as error:
                if not failures:
                    log.warning("service away, trying on: %s", error)
                await asyncio.sleep(pause(failures))
                failures += 1
                continue
            if failures:
                log.info("service back")
            failures = 0
            if lease:
                self._adopt(worker, lease)

    async def _transfer_forever(self, session: aiohttp.ClientSession, store: aiohttp.ClientSession) -> None:
        settings = self._settings
        if not settings.transfers or not self._commands.converter:
            await asyncio.Event().wait()
        client = TransferClient(session, settings.service_url, settings.worker_token)
        transfers = Transfers(settings, self._commands.converter, self._jobs, client, store)
        await transfers.run(self._engine.wait_ready)

    async def _wait_for_room(self) -> None:
        while not self._has_room():
            self._room.clear()
            await self._room.wait()
        await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
        await self._engine.wait_ready()

    def _has_room(self) -> bool:
        """Jobs that are out of the shared engine leave their places in it to others, within bounds."""
        shared = sum(not run.suspect for run in self._runs.values())
        return shared < self._settings.jobs and len(self._runs) < self._settings.jobs * MOST_RUNS

    def _adopt(self, worker: Worker, lease: Lease) -> None:
        job, step = lease.spec.job_id, lease.checkpoint.manifest.step if lease.checkpoint else 0
        log.info("job %s claimed (epoch %d, from step %d)", job, lease.epoch, step)
        run = LeaseRun(worker, lease, job_folder(self._jobs, lease), self._rest)
        if time.monotonic() < self._not_before:
            # It was asked for before the agent knew better: handed on, and not asked for again yet.
            run.orders.give("release")
        previous = self._runs.get(job)
        if previous:
            # The service has given the job out again, so the lease under which it still runs here is gone.
            previous.orders.give("lost")
        self._runs[job] = run
        task = asyncio.create_task(self._carry(run, previous))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, run: LeaseRun, previous: LeaseRun | None) -> None:
        try:
            await run.run(previous)
        except Exception:
            # The lease runs out and the job is tried again, here or elsewhere, as often as the service allows.
            log.exception("job %s: unexpected error, left to its lease", run.job)
            self._rest()
        finally:
            run.gone.set()
            if self._runs.get(run.job) is run:
                del self._runs[run.job]
            self._room.set()

    def _rest(self) -> None:
        self._not_before = time.monotonic() + UNFIT_PAUSE_SECONDS

    async def _hand_back(self) -> None:
        """Checkpoints and releases every job, as far as `stop_seconds` allow; then ends the children."""
        for run in self._runs.values():
            run.orders.give("release")
        last = self._settings.stop_seconds * CHILD_END_PART
        if self._tasks:
            log.info("stopping: handing back %d jobs", len(self._tasks))
            _, late = await asyncio.wait(self._tasks, timeout=self._settings.stop_seconds - last)
            for task in late:
                task.cancel()
            if late:
                log.warning("stopping: %d jobs are left to their leases", len(late))
                await asyncio.wait(late)
        await asyncio.gather(self._engine.end(last), self._preparer.end(last), self._quarantine.end(last))
        log.info("stopped")
