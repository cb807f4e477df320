"""A request under a key whose answer comes from outside of the database: from a replica, the store, another's server.

No transaction can last so long. The request is claimed in a row before anything is done, answered in the same row, and
given free where it failed or its client left; whoever comes meanwhile is told to come again. The claim of a process
that was killed ends by itself, and the request may then be made again: at least once, where a change in the database
happens exactly once.
"""

import asyncio
import logging
import secrets
from datetime import timedelta
from types import TracebackType
from typing import Any

from sqlalchemy import func, literal, update
from sqlalchemy.dialects.postgresql import insert

from service.contracts.ids import ProjectId
from service.db import Database, DatabaseUnavailable, TenantSession
from service.idempotency.answers import Request, in_flight
from service.idempotency.attempt import look
from service.idempotency.models import IN_FLIGHT, NOT_KEPT, AnswerRow

HELD = timedelta(seconds=30)
RENEW_SECONDS = 10.0
MAX_ANSWER_BYTES = 1 << 20
"""A longer answer is not kept."""

log = logging.getLogger("service.idempotency")


class Claim:
    """An async context around the work. Entering raises Replayed and whatever else `look` does."""

    def __init__(self, database: Database, project: ProjectId, request: Request, lifetime: timedelta) -> None:
        self._database, self._project, self._request, self._lifetime = database, project, request, lifetime
        self._holder = secrets.token_bytes(16)
        self._settled = False

    async def __aenter__(self) -> "Claim":
        async with self._database.tenant(self._project) as session:
            await self._take(session)
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._renewing.cancel()
        if not self._settled:
            await self._write(expires_at=func.now())

    async def settle(self, status: int, body: bytes | None) -> None:
        """Records the answer, or with None that there was one, which nobody gets again."""
        answer = NOT_KEPT if body is None or len(body) > MAX_ANSWER_BYTES else self._request.sealed(body)
        self._settled = True
        await self._write(status=status, answer=answer, expires_at=func.now() + self._lifetime)

    async def _take(self, session: TenantSession) -> None:
        values: dict[str, Any] = {
            "body_hash": self._request.body_hash,
            "status": IN_FLIGHT,
            "answer": self._holder,
            "created_at": func.now(),
            "expires_at": func.now() + HELD,
        }
        row = insert(AnswerRow).values(project_id=self._project, scope=self._request.scope, **values)
        over = AnswerRow.expires_at <= func.now()
        taken = row.on_conflict_do_update(index_elements=["project_id", "scope"], set_=values, where=over)
        if await session.scalar(taken.returning(literal(True))) is None:
            await look(session, self._request)
            # It ended between the two statements.
            raise in_flight()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            await self._write(expires_at=func.now() + HELD)

    async def _write(self, **values: Any) -> None:
        """Changes nothing where somebody else holds the request by now. Without the database the claim ends by itself.

        An answer that cannot be recorded is given all the same: it cost what it cost.
        """
        held = AnswerRow.project_id == self._project, AnswerRow.scope == self._request.scope
        own = update(AnswerRow).where(*held, AnswerRow.status == IN_FLIGHT, AnswerRow.answer == self._holder)
        try:
            async with self._database.tenant(self._project) as session:
                await session.execute(own.values(**values))
        except DatabaseUnavailable as error:
            log.warning("the claim of a request is not written: %s", error)
