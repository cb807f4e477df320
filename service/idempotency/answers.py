"""What tells one request from another, and the answer to it: sealed, recorded in a row, found again.

Requests that mean the same are told by their scope: the caller's key, method and path, and either the
`Idempotency-Key` or, for stock OpenAI clients, which retry without one, the body. Such clients say with
`x-stainless-retry-count` that they repeat themselves; a first attempt never gets another's answer, because whoever asks
twice for the same thing may want two.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from service.errors import ApiError, Conflict, Unprocessable
from service.idempotency.models import IN_FLIGHT, NOT_KEPT, AnswerRow

KEYED = timedelta(hours=24)
UNKEYED = timedelta(minutes=10)
NONCE_BYTES = 12


class Replayed(Exception):
    """The request was answered before; this is the answer."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__("replayed")
        self.status = status
        self.body = body


@dataclass(frozen=True)
class Request:
    """What tells one request from another. `secret` seals answers, which may hold a new key's value or a chat."""

    caller: str
    method: str
    path: str
    body_hash: bytes
    key: str | None
    repeats: bool
    secret: str

    @cached_property
    def scope(self) -> bytes:
        meant = ("key", self.key) if self.key is not None else ("body", self.body_hash.hex())
        return _digest(self.caller, self.method, self.path, *meant)

    @property
    def lifetime(self) -> timedelta:
        """Of an answer that was recorded with a change."""
        return KEYED if self.key is not None else UNKEYED

    def sealed(self, body: bytes) -> bytes:
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._seal().encrypt(nonce, body, None)

    def replay(self, row: AnswerRow) -> Exception:
        """What to raise where this request was made before: Replayed, or why that has no answer for it."""
        if row.body_hash != self.body_hash:
            return Unprocessable(
                "This Idempotency-Key was used for another request; give each request a key of its own.",
                code="idempotency_key_reused",
                headers={"x-should-retry": "false"},
            )
        if row.status == IN_FLIGHT:
            return in_flight()
        if row.answer == NOT_KEPT:
            return Conflict(
                "The request with this Idempotency-Key was answered by a stream or at great length, and such answers "
                "are not kept; give each request a key of its own.",
                code="idempotency_answer_not_kept",
            )
        nonce, sealed = row.answer[:NONCE_BYTES], row.answer[NONCE_BYTES:]
        return Replayed(row.status, self._seal().decrypt(nonce, sealed, None))

    def _seal(self) -> AESGCM:
        """Of this scope alone: the database by itself gives away no answer, nor the value of a key that was in it."""
        return AESGCM(_digest(self.secret, "recorded answer", self.scope.hex()))


def in_flight() -> ApiError:
    """OpenAI's clients repeat this by themselves, and get the answer once there is one."""
    return Conflict(
        "The same request is still being worked on; ask again for its answer.",
        code="idempotency_in_flight",
        headers={"x-should-retry": "true", "Retry-After": "1"},
    )


def _digest(*parts: str) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.digest()
