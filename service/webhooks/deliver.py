"""Sends what waits in the outbox. Runs in every service process; any number may run at once.

An attempt is counted and leased first, sent in no transaction and recorded after: whoever dies in between leaves a
lease that runs out, and the event is sent again under the same id. So it arrives at least once.
"""

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, exists, func, select, text, update

from service.db import ControlSession, DatabaseUnavailable
from service.resources import Resources
from service.webhooks import signing
from service.webhooks.guard import Sender, Undelivered, open_sender
from service.webhooks.models import DeliveryRow, EndpointRow

MINUTE, HOUR = 60, 3600
DELAYS = (5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR)
"""Seconds between attempts, as Standard Webhooks proposes them; the first attempt is made at once."""
JITTER = 0.2
LEASE_SECONDS = 60.0
"""Several times what an attempt may take."""
AT_ONCE = 32
AT_ONCE_PER_ENDPOINT = 4
"""An endpoint that never answers must not keep the others waiting."""
POLL_SECONDS = 1.0
KEPT = timedelta(days=30)
WAITING = timedelta(hours=72)
"""How long an event waits for an endpoint that is disabled: about as long as it is tried at one that never answers."""
PRUNE_SECONDS = 600.0
GONE = 410

log = logging.getLogger("service.webhooks")

CLAIM = text("""
    with due as (
      select turn.id
      from (
        select distinct endpoint_id from webhook_deliveries
        where status = 'pending' and next_attempt_at <= now() and (lease_until is null or lease_until <= now())
      ) waiting
      join webhook_endpoints e on e.id = waiting.endpoint_id and e.deleted_at is null and e.disabled_at is null
      cross join lateral (
        select d.id from webhook_deliveries d
        where d.endpoint_id = e.id and d.status = 'pending' and d.next_attempt_at <= now()
          and (d.lease_until is null or d.lease_until <= now())
        order by d.next_attempt_at
        limit greatest(0, :per_endpoint - (
          select count(*) from webhook_deliveries busy
          where busy.endpoint_id = e.id and busy.status = 'pending' and busy.lease_until > now()))
        for update skip locked
      ) turn
      order by random() limit :at_once
    )
    update webhook_deliveries d
    set attempts = attempts + 1, last_attempt_at = now(), lease_until = now() + make_interval(secs => :lease)
    from due where d.id = due.id
    returning d.id
""")


@dataclass(frozen=True)
class Attempt:
    delivery: DeliveryRow
    endpoint: EndpointRow


@dataclass(frozen=True)
class Outcome:
    """`error` is None where the endpoint has taken the event."""

    status: int | None
    error: str | None


async def run(resources: Resources) -> None:
    """Delivers until cancelled. An outage of the database only delays it."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_keep_delivering(resources, tasks))
        tasks.create_task(_keep_pruning(resources))


async def _keep_delivering(resources: Resources, tasks: asyncio.TaskGroup) -> None:
    at_work: set[asyncio.Task[None]] = set()
    async with open_sender(resources.settings.webhooks_to_private_networks) as sender:
        with resources.notifications.watch("webhook") as wake:
            while True:
                wake.clear()
                for attempt in await _claimed(resources, AT_ONCE - len(at_work)):
                    task = tasks.create_task(_attempt(resources, sender, attempt))
                    at_work.add(task)
                    task.add_done_callback(at_work.discard)
                    task.add_done_callback(lambda _: wake.set())
                await _woken(wake)


async def _claimed(resources: Resources, free: int) -> list[Attempt]:
    if free <= 0:
        return []
    try:
        async with resources.database.control() as session:
            return await claim(session, free)
    except DatabaseUnavailable as error:
        log.warning("webhooks are sent later: %s", error)
        return []


async def claim(session: ControlSession, at_once: int) -> list[Attempt]:
    """Takes up to `at_once` attempts that are due. They are this process's for LEASE_SECONDS from the commit on."""
    limits = {"per_endpoint": AT_ONCE_PER_ENDPOINT, "lease": LEASE_SECONDS, "at_once": at_once}
    taken = (await session.scalars(CLAIM, limits)).all()
    query = select(DeliveryRow, EndpointRow).join(EndpointRow, EndpointRow.id == DeliveryRow.endpoint_id)
    found = await session.execute(query.where(DeliveryRow.id.in_(taken)))
    return [Attempt(delivery, endpoint) for delivery, endpoint in found]


async def _attempt(resources: Resources, sender: Sender, attempt: Attempt) -> None:
    outcome = await send(resources, sender, attempt.endpoint, attempt.delivery.event_id, attempt.delivery.body)
    try:
        async with resources.database.control() as session:
            await record(session, attempt, outcome)
    except DatabaseUnavailable as error:
        log.warning("an attempt at %s is not recorded and will be repeated: %s", attempt.delivery.id, error)


async def send(resources: Resources, sender: Sender, endpoint: EndpointRow, event_id: str, body: str) -> Outcome:
    """One attempt, signed now."""
    moment = time.time()
    versions = (endpoint.secret_version,)
    if endpoint.previous_until is not None and endpoint.previous_until > datetime.fromtimestamp(moment, UTC):
        versions = (endpoint.secret_version, endpoint.secret_version - 1)
    headers = signing.headers(resources.settings.secret, endpoint, versions, event_id, int(moment), body)
    try:
        status = await sender.post(endpoint.url, headers, body)
    except Undelivered as error:
        return Outcome(None, str(error))
    return Outcome(status, None if 200 <= status < 300 else f"answered {status}")


async def record(session: ControlSession, attempt: Attempt, outcome: Outcome) -> None:
    """Notes how an attempt went, unless the delivery has moved on since."""
    delivery, ended = attempt.delivery, outcome.status == GONE or attempt.delivery.attempts > len(DELAYS)
    values: dict[str, object] = {"lease_until": None, "response_status": outcome.status, "error": outcome.error}
    if outcome.error is None:
        values |= {"status": "delivered", "delivered_at": func.now()}
    elif ended:
        values["status"] = "failed"
    else:
        seconds = DELAYS[delivery.attempts - 1] * random.uniform(1 - JITTER, 1 + JITTER)
        values["next_attempt_at"] = func.now() + timedelta(seconds=seconds)
    current = update(DeliveryRow).where(
        DeliveryRow.id == delivery.id, DeliveryRow.status == "pending", DeliveryRow.attempts == delivery.attempts
    )
    await session.execute(current.values(values))
    if outcome.status == GONE:
        enabled = update(EndpointRow).where(EndpointRow.id == attempt.endpoint.id, EndpointRow.disabled_at.is_(None))
        await session.execute(enabled.values(disabled_at=func.now()))


async def prune(session: ControlSession) -> None:
    """Gives up what waits too long for an endpoint that takes nothing, and forgets what ended long ago."""
    taking = (EndpointRow.id == DeliveryRow.endpoint_id) & EndpointRow.disabled_at.is_(None)
    useless = update(DeliveryRow).where(
        DeliveryRow.status == "pending",
        DeliveryRow.next_attempt_at < func.now() - WAITING,
        ~exists().where(taking, EndpointRow.deleted_at.is_(None)),
    )
    await session.execute(useless.values(status="failed", error="the endpoint was disabled for too long"))
    old = (DeliveryRow.status != "pending") & (DeliveryRow.created_at < func.now() - KEPT)
    await session.execute(delete(DeliveryRow).where(old))


async def _keep_pruning(resources: Resources) -> None:
    while True:
        try:
            async with resources.database.control() as session:
                await prune(session)
        except DatabaseUnavailable as error:
            log.warning("old deliveries are removed later: %s", error)
        await asyncio.sleep(PRUNE_SECONDS)


async def _woken(wake: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(wake.wait(), POLL_SECONDS)
    except TimeoutError:
        return
