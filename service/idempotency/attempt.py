"""One attempt at a request that changes something, so that repeating it changes nothing more.

The answer is recorded in the transaction that makes the change: a process killed before the commit has done nothing,
one killed after it has left the answer for the next attempt. Attempts that mean the same are told by their scope: the
caller's key, method and path, and either the `Idempotency-Key` or, for stock OpenAI clients, which retry without one,
the body. Such clients say with `x-stainless-retry-count` that they repeat themselves; a first attempt never gets
another's answer, because whoever asks twice for the same thing may want two.

An advisory lock per scope makes attempts wait for those before them: exclusive where an answer may be replayed, shared
among first attempts without a key. Errors are not recorded, since whatever failed was rolled back.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from service.db import ControlSession, TenantSession
from service.errors import ApiError, Conflict, Unprocessable
from service.idempotency.models import AnswerRow

KEYED = timedelta(hours=24)
UNKEYED = timedelta(minutes=10)
WAIT_SECONDS = 5
LOCK_NOT_AVAILABLE = "55P03"
NONCE_BYTES = 12


class Replayed(Exception):
    """The request was answered before; this is the answer."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__("replayed")
        self.status = status
        self.body = body


@dataclass(frozen=True)
class Request:
    """What tells one request from another. `secret` seals answers, which may hold a new key's value."""

    caller: str
    method: str
    path: str
    body_hash: bytes
    key: str | None
    repeats: bool
    secret: str

    @property
    def scope(self) -> bytes:
        meant = ("key", self.key) if self.key is not None else ("body", self.body_hash.hex())
        return _digest(self.caller, self.method, self.path, *meant)


class Attempt:
    """Begun inside the transaction that makes the change, and recorded inside the same."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._session: AsyncSession | None = None
        self.scope = request.scope

    @property
    def exclusive(self) -> bool:
        """Whether an earlier answer may be given."""
        return self._request.key is not None or self._request.repeats

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
            await self._look(session)
        self._session = session

    async def record(self, status: int, body: bytes) -> None:
        """Keeps the answer. Effective with the commit of the session that the attempt was begun in."""
        assert self._session is not None
        values = {
            "body_hash": self._request.body_hash,
            "status": status,
            "answer": _sealed(self._seal(), body),
            "created_at": func.now(),
        }
        row = insert(AnswerRow).values(project_id=_project(self._session), scope=self.scope, **values)
        await self._session.execute(row.on_conflict_do_update(index_elements=["project_id", "scope"], set_=values))

    async def _lock(self, session: AsyncSession) -> None:
        number = int.from_bytes(self.scope[:8], signed=True)
        kind = "" if self.exclusive else "_shared"
        limit = f"set_config('lock_timeout', '{WAIT_SECONDS}s', true)"
        try:
            await session.execute(text(f"select {limit}, pg_advisory_xact_lock{kind}(:number)"), {"number": number})
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) == LOCK_NOT_AVAILABLE:
                raise in_flight() from error
            raise

    async def _look(self, session: AsyncSession) -> None:
        lifetime = KEYED if self._request.key is not None else UNKEYED
        own = select(AnswerRow).where(AnswerRow.project_id == _project(session), AnswerRow.scope == self.scope)
        row = await session.scalar(own.where(AnswerRow.created_at > func.now() - lifetime))
        if row is None:
            return
        if row.body_hash != self._request.body_hash:
            raise Unprocessable(
                "This Idempotency-Key was used for another request; give each request a key of its own.",
                code="idempotency_key_reused",
                headers={"x-should-retry": "false"},
            )
        nonce, sealed = row.answer[:NONCE_BYTES], row.answer[NONCE_BYTES:]
        raise Replayed(row.status, self._seal().decrypt(nonce, sealed, None))

    def _seal(self) -> AESGCM:
        """Of this scope alone: the database by itself gives away no answer, nor the value of a key that was in it."""
        return AESGCM(_digest(self._request.secret, "recorded answer", self.scope.hex()))


def in_flight() -> ApiError:
    """OpenAI's clients repeat this by themselves, and get the answer once there is one."""
    return Conflict(
        "The same request is still being worked on; ask again for its answer.",
        code="idempotency_in_flight",
        headers={"x-should-retry": "true", "Retry-After": "1"},
    )


def _sealed(seal: AESGCM, body: bytes) -> bytes:
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + seal.encrypt(nonce, body, None)


def _project(session: AsyncSession) -> str:
    return session.project_id if isinstance(session, TenantSession) else ""


def _digest(*parts: str) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.digest()
