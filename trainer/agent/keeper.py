"""Keeps one lease alive and knows when it may be gone. Owns the clock of a lease; what ends with it is the run's.

A lease counts from before the request that renewed it was sent, on the monotonic clock, so no delay on the way and no
change of the wall clock can make it look longer than it is.
"""

import asyncio
import logging
import time

from service.contracts.worker import Lease, RenewRequest
from trainer.agent.orders import Orders
from trainer.control import LeaseLost, Refused, ServiceAway, ServiceClient, pause

log = logging.getLogger(__name__)

MARGIN = 1 / 5
"""Part of a lease kept back to stop the job in: 6 of 30 seconds."""

ATTEMPTS_PER_LEASE = 4
GONE = frozenset({404, 409, 410})


class LeaseKeeper:
    """`margin` seconds are left of the lease when it gives the order `fenced`."""

    def __init__(self, service: ServiceClient, lease: Lease, orders: Orders) -> None:
        self._service, self._lease, self._orders = service, lease, orders
        self._job = lease.spec.job_id
        self._trust(time.monotonic(), lease.ttl_seconds)
        self.confirmed = asyncio.Event()
        """The lease is known to be ours now. A claim's long poll does not tell when it was granted; a renewal does."""

    async def run(self) -> None:
        """Renews until the lease is lost or may have run out."""
        failures = 0
        while (left := self._deadline - time.monotonic()) > 0:
            if await self._renew(min(left, self._ttl / ATTEMPTS_PER_LEASE)):
                failures = 0
                await asyncio.sleep(self._lease.renew_seconds)
            elif self._orders.current == "lost":
                return
            else:
                await asyncio.sleep(min(pause(failures), max(0.0, self._deadline - time.monotonic())))
                failures += 1
        log.warning("job %s: the lease could not be renewed in time", self._job)
        self._orders.give("fenced")

    async def _renew(self, limit: float) -> bool:
        sent = time.monotonic()
        try:
            control = await self._service.renew(self._job, RenewRequest(epoch=self._lease.epoch), limit)
        except LeaseLost:
            self._orders.give("lost")
            return False
        except Refused as error:
            log.warning("job %s: renewal refused: %s", self._job, error)
            if error.status in GONE:
                self._orders.give("lost")
            return False
        except ServiceAway as error:
            log.warning("job %s: renewal failed: %s", self._job, error)
            return False
        self._trust(sent, control.ttl_seconds)
        self.confirmed.set()
        self._orders.give(control.want)
        return True

    def _trust(self, since: float, ttl: float) -> None:
        self._ttl, self.margin = ttl, ttl * MARGIN
        self._deadline = since + ttl - self.margin
