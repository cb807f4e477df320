"""The engine's loop: takes Start and Stop from the agent and steps the resident jobs.

Owns who is resident and the outgoing messages. An exception in one job ends that job alone, and one that memory does
not hold waits; a broken accelerator ends the process, because nothing in it can be trusted any more and the agent
starts a new one.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable

import torch
from pydantic import ValidationError

from trainer.engine.adapter import OutOfMemory
from trainer.engine.admission import Applicant, WaitingRoom, shape_of, stopped_waiting
from trainer.engine.engine import Engine
from trainer.engine.failures import as_failure
from trainer.engine.memory import Account, TooLarge
from trainer.engine.runner import JobRunner
from trainer.engine.scheduler import Scheduler
from trainer.engine.turns import step
from trainer.pipes import AgentPipe
from trainer.protocol import AwaitingMemory, CheckpointWritten, JobFailed, Line, Start, Stop, Stopped, to_engine

log = logging.getLogger("trainer.engine")

FLUSH_SECONDS = 0.5
"""Steps of a small job take milliseconds; the agent hears of them in batches."""


class Server:
    """Serves one agent until it closes the pipe."""

    def __init__(
        self, pipe: AgentPipe, engine: Engine, account: Account, fingerprint: str, checkpoint_seconds: float
    ) -> None:
        self._pipe, self._engine, self._account = pipe, engine, account
        self._fingerprint, self._checkpoint_seconds = fingerprint, checkpoint_seconds
        self._commands: queue.SimpleQueue[Start | Stop] = queue.SimpleQueue()
        self._jobs: dict[str, JobRunner] = {}
        self._applicants: dict[str, Applicant] = {}
        """Of the resident jobs: what they came with, and their newest checkpoint."""
        self._waiting = WaitingRoom()
        self._flushed = time.monotonic()
        self._scheduler: Scheduler[JobRunner] = Scheduler(engine.shared_budget)
        engine.after_pass(self._flush)

    def run(self) -> None:
        """Never returns: the process ends with the pipe, even in the middle of a step."""
        threading.Thread(target=self._read, args=(self._pipe.lines(),), name="commands", daemon=True).start()
        while True:
            self._obey()
            step(self._engine, self._scheduler, list(self._jobs.values()), self._guard)
            self._let_in()
            self._flush()

    def _read(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            try:
                self._commands.put(to_engine.validate_json(line))
            except ValidationError as error:
                log.error("unreadable command: %s", error.errors(include_input=False, include_url=False))
        # Whoever held the leases is gone. Checkpoints and adapters appear whole or not at all, so now is a good time.
        os._exit(0)

    def _obey(self) -> None:
        """Commands that have come; with no job to train, waits for one."""
        while not self._jobs or not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, Start):
                self._arrive(command)
            elif runner := self._jobs.get(command.job_id):
                self._guard(runner, lambda runner=runner, save=command.save: runner.stop(save))
            elif applicant := self._waiting.leave(command.job_id):
                self._send([stopped_waiting(applicant.start)])
            self._let_in()

    def _arrive(self, start: Start) -> None:
        job_id = start.spec.job_id
        if job_id in self._jobs or job_id in self._waiting:
            log.error("job %s is here already", job_id)
            return
        try:
            if start.spec.base_fingerprint != self._fingerprint:
                raise WrongBase
            need = self._account.need(shape_of(start, self._engine.modules))
            if need.alone > self._account.limit:
                raise TooLarge(need.alone, self._account.limit)
        except Exception as error:
            self._refuse(job_id, error)
            return
        applicant = Applicant(start, need)
        self._waiting.join(applicant)
        self._let_in()
        if job_id in self._waiting:
            self._tell_to_wait(applicant)

    def _let_in(self) -> None:
        """Everybody who may come and fits."""
        while applicant := self._waiting.next(self._fits):
            self._admit(applicant)

    def _fits(self, applicant: Applicant) -> bool:
        return not self._jobs or (not applicant.alone and not self._crowded and self._account.fits(applicant.need))

    @property
    def _crowded(self) -> bool:
        """Whether a resident job has proved to need all there is."""
        return any(applicant.alone for applicant in self._applicants.values())

    def _admit(self, applicant: Applicant) -> None:
        job_id = applicant.job_id
        try:
            self._jobs[job_id] = JobRunner(self._engine, applicant.start, self._checkpoint_seconds)
        except torch.AcceleratorError:
            raise
        except OutOfMemory as error:
            if self._jobs:
                self._keep_out(applicant)
            else:
                self._refuse(job_id, error)
        except Exception as error:
            self._refuse(job_id, error)
        else:
            self._account.enter(job_id, applicant.need)
            self._applicants[job_id] = applicant

    def _guard(self, runner: JobRunner, work: Callable[[], None]) -> None:
        try:
            work()
        except torch.AcceleratorError:
            raise
        except OutOfMemory as error:
            if len(self._jobs) > 1:
                self._set_aside(runner)
                return
            self._fail(runner, error)
        except Exception as error:
            self._fail(runner, error)
        said = self._said(runner)
        if runner.finished:
            self._remove(runner)
        self._send(said)

    def _fail(self, runner: JobRunner, error: Exception) -> None:
        log.error("job %s failed at step %d", runner.job_id, runner.step, exc_info=error)
        runner.failed(error)

    def _set_aside(self, runner: JobRunner) -> None:
        """Not even one row fits beside the others. That says nothing of the job, so it waits until they have gone."""
        log.warning("job %s: out of memory beside %d others, waits to be alone", runner.job_id, len(self._jobs) - 1)
        try:
            runner.stop(save=True)
        except torch.AcceleratorError:
            raise
        except Exception:
            log.exception("job %s could not be saved, goes on from its last checkpoint", runner.job_id)
            runner.release()
        self._send(line for line in self._said(runner) if not isinstance(line, Stopped))
        self._keep_out(self._remove(runner))

    def _keep_out(self, applicant: Applicant) -> None:
        applicant.alone = True
        self._waiting.rejoin(applicant)
        self._tell_to_wait(applicant)

    def _remove(self, runner: JobRunner) -> Applicant:
        del self._jobs[runner.job_id]
        self._account.leave(runner.job_id)
        return self._applicants.pop(runner.job_id)

    def _refuse(self, job_id: str, error: Exception) -> None:
        log.error("job %s was not admitted", job_id, exc_info=error)
        self._send([JobFailed(job_id=job_id, step=0, trained_tokens=0, failure=as_failure(error))])

    def _tell_to_wait(self, applicant: Applicant) -> None:
        needed, free = self._account.needed(applicant.need), max(0, self._account.free)
        self._send([AwaitingMemory(job_id=applicant.job_id, needed_bytes=needed, free_bytes=free)])

    def _flush(self) -> None:
        if time.monotonic() - self._flushed < FLUSH_SECONDS:
            return
        self._flushed = time.monotonic()
        for runner in self._jobs.values():
            runner.flush()
            self._send(self._said(runner))

    def _said(self, runner: JobRunner) -> list[Line]:
        """What the job has to say. Where it could be started from is remembered."""
        said = list(runner.outbox)
        runner.outbox.clear()
        for line in said:
            if isinstance(line, CheckpointWritten):
                applicant = self._applicants[line.job_id]
                applicant.start = applicant.start.model_copy(update={"checkpoint_dir": line.directory})
        return said

    def _send(self, lines: Iterable[Line]) -> None:
        for line in lines:
            self._pipe.send(line)


class WrongBase(Exception):
    """The job was made for another base model than the one loaded here."""
