"""One attempt at a request that makes a change in a transaction, so that repeating it changes nothing more.

The answer is recorded in the transaction that makes the change: a process killed before the commit has done nothing,
one killed after it has left the answer for the next attempt.

An advisory lock per scope makes attempts wait for those before them: exclusive where an answer may be replayed, shared
among first attempts without a key. Errors are not recorded, since whatever failed was rolled back.
"""

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from service.db import ControlSession, TenantSession
from service.idempotency.answers import Request, in_flight
from service.idempotency.models import AnswerRow

WAIT_SECONDS = 5
LOCK_NOT_AVAILABLE = "55P03"


class Attempt:
    """Begun inside the transaction that makes the change, and recorded inside the same."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._session: AsyncSession | None = None

    @property
    def exclusive(self) -> bool:
        """Whether an earlier answer may be given."""
        return self.request.key is not None or self.request.repeats

    @property
    def begun(self) -> bool:
        return self._session is not None

    async def begin(self, session: TenantSession | ControlSession) -> None:
        """Waits for other attempts at the same. Raises Replayed where one of them was answered.

        Raises Unprocessable where the key was used for another body, Conflict where an attempt lasts too long.
        """
        if self.begun:
            return
        await self._lock(session)
        if self.exclusive:
            await look(session, self.request)
        self._session = session

    async def record(self, status: int, body: bytes) -> None:
        """Keeps the answer. Effective with the commit of the session that the attempt was begun in."""
        assert self._session is not None
        values = {
            "body_hash": self.request.body_hash,
            "status": status,
            "answer": self.request.sealed(body),
            "created_at": func.now(),
            "expires_at": func.now() + self.request.lifetime,
        }
        row = insert(AnswerRow).values(project_id=_project(self._session), scope=self.request.scope, **values)
        await self._session.execute(row.on_conflict_do_update(index_elements=["project_id", "scope"], set_=values))

    async def _lock(self, session: AsyncSession) -> None:
        number = int.from_bytes(self.request.scope[:8], signed=True)
        kind = "" if self.exclusive else "_shared"
        limit = f"set_config('lock_timeout', '{WAIT_SECONDS}s', true)"
        try:
            await session.execute(text(f"select {limit}, pg_advisory_xact_lock{kind}(:number)"), {"number": number})
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) == LOCK_NOT_AVAILABLE:
                raise in_flight() from error
            raise


async def look(session: TenantSession | ControlSession, request: Request) -> None:
    """Returns where the request was not made before. Raises what there is to say where it was."""
    own = select(AnswerRow).where(AnswerRow.project_id == _project(session), AnswerRow.scope == request.scope)
    row = await session.scalar(own.where(AnswerRow.expires_at > func.now()))
    if row is not None:
        raise request.replay(row)


def _project(session: AsyncSession) -> str:
    return session.project_id if isinstance(session, TenantSession) else ""
