"""What the job's owner sees while it runs: phase, counts and events, sent in batches.

Owns the buffer. Events are kept while the service is away, up to a bound; their ids make it harmless to send one twice.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from typing import Any, Literal

from service.contracts.job import Phase
from service.contracts.worker import Event, Lease, Report
from trainer.agent.orders import Orders
from trainer.control import LeaseLost, Refused, ServiceAway, ServiceClient

log = logging.getLogger(__name__)

BATCH_EVENTS = 200
BUFFER_EVENTS = 5000
REST_TRIES = 100


class Reporter:
    def __init__(self, service: ServiceClient, lease: Lease, orders: Orders, every: float) -> None:
        self._service, self._lease, self._orders, self._every = service, lease, orders, every
        self._job = lease.spec.job_id
        self._phase: Phase = "preparing"
        self._events: dict[str, Event] = {}
        self._numbers = itertools.count(1)
        self._news = True
        self._dropped = 0
        self._sending = asyncio.Lock()
        self._began = asyncio.Event()
        """Set for a moment by the first step, which is told at once: whoever looks on waits for it."""
        self.total_steps = 0
        self.step = lease.checkpoint.manifest.step if lease.checkpoint else 0
        self.trained_tokens = lease.checkpoint.manifest.trained_tokens if lease.checkpoint else 0

    def phase(self, phase: Phase) -> None:
        self._news = self._news or phase != self._phase
        self._phase = phase

    def await_memory(self, needed: int, free: int) -> None:
        """One event for each wait, however often the engine speaks of it."""
        if self._phase != "waiting":
            text = f"it needs about {needed / (1 << 30):.1f} GiB, {free / (1 << 30):.1f} GiB are free"
            self.note(f"The job waits for memory: {text}.", code="awaiting_memory", needed=needed, free=free)
        self.phase("waiting")

    def counts(self, step: int, trained_tokens: int) -> None:
        if step and not self.step:
            self._began.set()
        self.step, self.trained_tokens, self._news = step, trained_tokens, True

    def add(self, events: tuple[Event, ...]) -> None:
        """The newest event of an id wins. When the buffer is full the oldest go."""
        for event in events:
            self._events.pop(event.id, None)
            self._events[event.id] = event
        while len(self._events) > BUFFER_EVENTS:
            self._events.pop(next(iter(self._events)))
            self._dropped += 1
        self._news = True

    def note(self, message: str, level: Literal["info", "warn", "error"] = "info", **data: Any) -> None:
        """An event of the agent's own. Its id comes from job, epoch and a running number, as repeats must be."""
        name = f"{self._job.removeprefix('ftjob-')[:40]}-e{self._lease.epoch}-agent-{next(self._numbers)}"
        self.add((Event(id=f"ftevent-{name}", level=level, message=message[:2000], data=data),))

    async def run(self) -> None:
        while True:
            if self._news or len(self._events) >= BATCH_EVENTS:
                await self._send()
            if len(self._events) < BATCH_EVENTS:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._began.wait(), self._every)
                self._began.clear()

    async def catch_up(self, patience: float) -> bool:
        """Sends what is known by now, for so many seconds if need be; whether the service has all of it."""
        wanted, deadline = set(self._events), time.monotonic() + patience
        while wanted & self._events.keys():
            if not await self._send() and (self._orders.current == "lost" or time.monotonic() > deadline):
                return False
        return True

    async def rest(self) -> tuple[Event, ...]:
        """Sends what is too much for one last message, as far as the service takes it, and returns what is left."""
        for _ in range(REST_TRIES):
            if len(self._events) <= BATCH_EVENTS:
                break
            await self._send()
        return tuple(self._events.values())[-BATCH_EVENTS:]

    async def _send(self) -> bool:
        """One report at a time, or two would send the same events; whether the service has answered it."""
        async with self._sending:
            return await self._send_alone()

    async def _send_alone(self) -> bool:
        batch = tuple(itertools.islice(self._events.values(), BATCH_EVENTS))
        report = Report(
            epoch=self._lease.epoch,
            phase=self._phase,
            step=self.step,
            total_steps=self.total_steps,
            trained_tokens=self.trained_tokens,
            events=batch,
        )
        self._news = False
        try:
            control = await self._service.report(self._job, report)
        except LeaseLost:
            self._orders.give("lost")
            return False
        except ServiceAway:
            self._news = True
            await asyncio.sleep(self._every)
            return False
        except Refused as error:
            log.warning("job %s: a report of %d events was refused and is dropped: %s", self._job, len(batch), error)
        else:
            self._orders.give(control.want)
        self._forget(batch)
        return True

    def _forget(self, batch: tuple[Event, ...]) -> None:
        for event in batch:
            if self._events.get(event.id) is event:  # Not where a newer one took its place meanwhile.
                del self._events[event.id]
        self._news = self._news or bool(self._events)
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self.note(f"{dropped} events were dropped while the service could not be reached.", "warn")
