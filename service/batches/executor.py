"""Works on batches in every service process: claims one after the other, a few at once, each of another project.

A batch is worked on in steps, and each step can be done again: whatever a killed process leaves is taken up by the next
one after `HELD`. While requests fail because no replica is there, a batch waits; it ends with its window.
"""

import asyncio
import logging
from datetime import timedelta

from sqlalchemy import func, select

from service.batches import beginning, ending
from service.batches.asking import Asking
from service.batches.holding import Holding, Lost, claim
from service.batches.models import BatchRow
from service.batches.throttle import Throttle
from service.contracts.store import StoreError
from service.db import DatabaseUnavailable
from service.gateway.routes import Gateway
from service.resources import Resources

POLL_SECONDS = 1.0
AT_ONCE = 8
SPENT = timedelta(seconds=60)
"""How long a batch waits whose project has spent its budget."""

log = logging.getLogger("service.batches")


async def run(resources: Resources, gateway: Gateway) -> None:
    """Works until cancelled."""
    throttle = Throttle(resources.settings.max_batch_requests, lambda: gateway.limits.in_progress)
    at_work: dict[str, asyncio.Task[None]] = {}
    try:
        while True:
            at_work = {project: task for project, task in at_work.items() if not task.done()}
            batch = await _claimed(resources, at_work) if len(at_work) < AT_ONCE else None
            if batch is None:
                await asyncio.sleep(POLL_SECONDS)
            else:
                at_work[batch.project_id] = asyncio.create_task(work(resources, gateway, throttle, batch))
    finally:
        for task in at_work.values():
            task.cancel()
        await asyncio.gather(*at_work.values(), return_exceptions=True)


async def work(resources: Resources, gateway: Gateway, throttle: Throttle, batch: BatchRow) -> None:
    """Takes one claimed batch as far as it goes now; never raises but when cancelled."""
    holding = Holding(resources, batch)
    working = asyncio.create_task(_steps(Asking(resources, gateway, throttle, holding)))
    keeping = asyncio.create_task(holding.keep())
    try:
        await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    except (Lost, DatabaseUnavailable, StoreError) as error:
        log.warning("batch %s is worked on later: %s", batch.id, error or "somebody else holds it")
    except Exception:
        # Left alone until its hold ends; another process may do better.
        log.exception("batch %s failed in an unexpected way and is tried again", batch.id)
    finally:
        working.cancel()
        keeping.cancel()
        await asyncio.gather(working, keeping, return_exceptions=True)


async def _claimed(resources: Resources, at_work: dict[str, "asyncio.Task[None]"]) -> BatchRow | None:
    try:
        return await claim(resources, list(at_work))
    except DatabaseUnavailable as error:
        log.warning("batches are looked for later: %s", error)
        return None


async def _steps(asking: Asking) -> None:
    resources, holding = asking.resources, asking.holding
    status = holding.batch.status
    if status == "validating":
        errors = await beginning.problems(resources, holding)
        if errors:
            await ending.fail(resources, holding, errors)
            return
        status = "in_progress"
    match status:
        case "in_progress":
            await _ask(asking)
        case "cancelling":
            await ending.end(resources, holding, "cancelled")
        case "finalizing":
            await ending.end(resources, holding, "completed")
        case _:
            await ending.purge(resources, holding)


async def _ask(asking: Asking) -> None:
    resources, holding = asking.resources, asking.holding
    done = {line for part in await holding.parts() for line in part.lines}
    asked = await asking.run(done)
    if asked.whole and await _finalizing(resources, holding):
        await ending.end(resources, holding, "completed")
    elif asked.state.over:
        await ending.end(resources, holding, "expired")
    else:
        # Time for others, or it was cancelled a moment ago.
        await holding.give_back(SPENT if asked.spent else timedelta(0))


async def _finalizing(resources: Resources, holding: Holding) -> bool:
    """From here on nobody can cancel it. False where somebody has."""
    async with resources.database.control() as session:
        status = await session.scalar(select(BatchRow.status).where(BatchRow.id == holding.batch.id).with_for_update())
        if status != "in_progress":
            return False
        await holding.change(session, status="finalizing", finalizing_at=func.now())
        return True
