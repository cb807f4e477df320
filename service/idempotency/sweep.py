"""Removes recorded answers that nothing gets any more."""

import asyncio
import logging

from sqlalchemy import delete, func

from service.db import Database, DatabaseUnavailable
from service.idempotency.models import AnswerRow

SWEEP_SECONDS = 600.0

log = logging.getLogger("service.idempotency")


async def run(database: Database) -> None:
    while True:
        try:
            await sweep(database)
        except DatabaseUnavailable as error:
            log.warning("recorded answers are swept later: %s", error)
        await asyncio.sleep(SWEEP_SECONDS)


async def sweep(database: Database) -> None:
    async with database.control() as session:
        await session.execute(delete(AnswerRow).where(AnswerRow.expires_at < func.now()))
