"""Works on evaluations in every service process: claims one after the other, a few at once, each of another project.

Each step can be done again: whatever a killed process leaves is taken up by the next one after `HELD`. While nothing
can be answered an evaluation waits, and fails after `PATIENCE`.
"""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from service.contracts.store import StoreError
from service.db import DatabaseUnavailable
from service.errors import Unavailable
from service.gateway.routes import Gateway
from service.promotions.asking import NotNow
from service.promotions.deciding import fail
from service.promotions.evaluating import TurnOver, evaluate
from service.promotions.holding import Holding, Lost, claim
from service.registry.models import EvaluationRow
from service.resources import Resources

POLL_SECONDS = 1.0
AT_ONCE = 4
LATER = timedelta(seconds=10)
PATIENCE = timedelta(hours=24)

log = logging.getLogger("service.promotions")


async def run(resources: Resources, gateway: Gateway) -> None:
    """Works until cancelled."""
    at_work: dict[str, asyncio.Task[None]] = {}
    try:
        while True:
            at_work = {project: task for project, task in at_work.items() if not task.done()}
            row = await _claimed(resources, at_work) if len(at_work) < AT_ONCE else None
            if row is None:
                await asyncio.sleep(POLL_SECONDS)
            else:
                at_work[row.project_id] = asyncio.create_task(work(resources, gateway, row))
    finally:
        for task in at_work.values():
            task.cancel()
        await asyncio.gather(*at_work.values(), return_exceptions=True)


async def work(resources: Resources, gateway: Gateway, row: EvaluationRow) -> None:
    """Takes one claimed evaluation as far as it goes now; never raises but when cancelled."""
    holding = Holding(resources, row)
    working = asyncio.create_task(_turn(resources, gateway, holding))
    keeping = asyncio.create_task(holding.keep())
    try:
        await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    except (Lost, DatabaseUnavailable, StoreError) as error:
        log.warning("evaluation %s is worked on later: %s", row.id, error or "somebody else holds it")
    except Exception:
        # Left alone until its hold ends; another process may do better.
        log.exception("evaluation %s failed in an unexpected way and is tried again", row.id)
    finally:
        working.cancel()
        keeping.cancel()
        await asyncio.gather(working, keeping, return_exceptions=True)


async def _turn(resources: Resources, gateway: Gateway, holding: Holding) -> None:
    try:
        await evaluate(resources, gateway, holding)
    except TurnOver:
        await holding.give_back(timedelta(0))
    except NotNow as reason:
        if datetime.now(UTC) - holding.row.created_at > PATIENCE:
            await fail(resources, holding, Unavailable(f"Nothing could be answered for too long: {reason}"))
        else:
            log.info("evaluation %s waits: %s", holding.row.id, reason)
            await holding.give_back(LATER)


async def _claimed(resources: Resources, at_work: dict[str, "asyncio.Task[None]"]) -> EvaluationRow | None:
    try:
        return await claim(resources, list(at_work))
    except DatabaseUnavailable as error:
        log.warning("evaluations are looked for later: %s", error)
        return None
