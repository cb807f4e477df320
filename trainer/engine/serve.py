"""The engine's loop: takes Start and Stop from the agent and steps the resident jobs.

Owns who is resident and the outgoing messages. An exception in one job ends that job alone; a broken accelerator ends
the process, because nothing in it can be trusted any more and the agent starts a new one.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable

import torch
from pydantic import ValidationError

from trainer.engine.engine import Engine
from trainer.engine.failures import as_failure
from trainer.engine.runner import JobRunner
from trainer.engine.scheduler import Scheduler
from trainer.engine.turns import step
from trainer.pipes import AgentPipe
from trainer.protocol import JobFailed, Line, Start, Stop, to_engine

log = logging.getLogger("trainer.engine")

FLUSH_SECONDS = 0.5
"""Steps of a small job take milliseconds; the agent hears of them in batches."""


class Server:
    """Serves one agent until it closes the pipe."""

    def __init__(self, pipe: AgentPipe, engine: Engine, fingerprint: str, checkpoint_seconds: float) -> None:
        self._pipe, self._engine = pipe, engine
        self._fingerprint, self._checkpoint_seconds = fingerprint, checkpoint_seconds
        self._commands: queue.SimpleQueue[Start | Stop] = queue.SimpleQueue()
        self._jobs: dict[str, JobRunner] = {}
        self._flushed = time.monotonic()
        self._scheduler: Scheduler[JobRunner] = Scheduler(engine.shared_budget)
        engine.after_pass(self._flush)

    def run(self) -> None:
        """Never returns: the process ends with the pipe, even in the middle of a step."""
        threading.Thread(target=self._read, args=(self._pipe.lines(),), name="commands", daemon=True).start()
        while True:
            self._obey()
            step(self._engine, self._scheduler, list(self._jobs.values()), self._guard)
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
            runner = self._jobs.get(command.spec.job_id if isinstance(command, Start) else command.job_id)
            if isinstance(command, Start):
                self._admit(command, runner)
            elif runner is not None:
                self._guard(runner, lambda runner=runner, save=command.save: runner.stop(save))

    def _admit(self, start: Start, resident: JobRunner | None) -> None:
        job_id = start.spec.job_id
        if resident is not None:
            log.error("job %s is resident already", job_id)
            return
        try:
            if start.spec.base_fingerprint != self._fingerprint:
                raise WrongBase
            self._jobs[job_id] = JobRunner(self._engine, start, self._checkpoint_seconds)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            log.exception("job %s was not admitted", job_id)
            self._send([JobFailed(job_id=job_id, step=0, trained_tokens=0, failure=as_failure(error))])

    def _guard(self, runner: JobRunner, work: Callable[[], None]) -> None:
        try:
            work()
        except torch.AcceleratorError:
            raise
        except Exception as error:
            log.exception("job %s failed at step %d", runner.job_id, runner.step)
            runner.failed(error)
        self._send(runner.outbox)
        runner.outbox.clear()
        if runner.finished:
            del self._jobs[runner.job_id]

    def _flush(self) -> None:
        if time.monotonic() - self._flushed < FLUSH_SECONDS:
            return
        self._flushed = time.monotonic()
        for runner in self._jobs.values():
            runner.flush()
            self._send(runner.outbox)
            runner.outbox.clear()

    def _send(self, lines: Iterable[Line]) -> None:
        for line in lines:
            self._pipe.send(line)


class WrongBase(Exception):
    """The job was made for another base model than the one loaded here."""
