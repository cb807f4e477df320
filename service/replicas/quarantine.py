"""Adapters in quarantine: what one replica found out keeps requests from every other one, for a day.

Replicas report them with each heartbeat; only a report of something later than what is known changes anything.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Text, cast, func, select, update
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP
from sqlalchemy.orm import InstrumentedAttribute

from service.adapters.models import AdapterRow
from service.contracts.replica import QUARANTINE_SECONDS
from service.db import ControlSession


async def note(session: ControlSession, since: Mapping[str, datetime]) -> bool:
    """Whether anything of it was news. Of what no adapter is called, nothing is noted."""
    if not since:
        return False
    ids = cast(list(since), ARRAY(Text))
    moments = cast(list(since.values()), ARRAY(TIMESTAMP(timezone=True)))
    told = select(func.unnest(ids).label("id"), func.unnest(moments).label("since")).subquery()
    # A replica's clock may be ahead.
    moment = func.least(told.c.since, func.now())
    older = AdapterRow.quarantined_at.is_(None) | (AdapterRow.quarantined_at < moment)
    noted = update(AdapterRow).where(AdapterRow.id == told.c.id, _lasts(moment), older).values(quarantined_at=moment)
    return (await session.scalars(noted.returning(AdapterRow.id))).first() is not None


async def quarantined(session: ControlSession) -> frozenset[str]:
    """Adapters that no request may use now."""
    return frozenset(await session.scalars(select(AdapterRow.id).where(_lasts(AdapterRow.quarantined_at))))


def _lasts(moment: ColumnElement[Any] | InstrumentedAttribute[Any]) -> ColumnElement[bool]:
    return moment > func.now() - timedelta(seconds=QUARANTINE_SECONDS)
