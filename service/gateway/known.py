"""Answers of the database, kept for when it cannot be asked: chat goes on through an outage for whoever was known."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from service.db import DatabaseUnavailable
from service.errors import Unavailable

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

ASK_SECONDS = 2.0
OUTAGE_SECONDS = 300.0
"""How long an answer is used after the database last gave it."""
AGAIN_SECONDS = 1.0
"""While one request asks anew, and after it got no answer, others go on with the old answer for so long."""
LIMIT = 10_000

log = logging.getLogger("service.gateway")


@dataclass(slots=True)
class _Entry(Generic[Value]):
    value: Value
    fresh_until: float
    given_at: float


class LastKnown(Generic[Key, Value]):
    """Values by key, fresh for `seconds`. None, the answer for an unknown key, is never kept."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._entries: dict[Key, _Entry[Value]] = {}
        self._forgotten = 0

    async def get(self, key: Key, load: Callable[[], Awaitable[Value | None]]) -> Value | None:
        """The value, loaded where it is not fresh. Raises Unavailable where it is not known and cannot be loaded."""
        now = time.monotonic()
        entry = self._entries.get(key)
        if entry is not None:
            if now < entry.fresh_until:
                return entry.value
            entry.fresh_until = now + AGAIN_SECONDS
        forgotten = self._forgotten
        try:
            async with asyncio.timeout(ASK_SECONDS):
                value = await load()
        except (DatabaseUnavailable, TimeoutError) as error:
            return self._stale(key, error)
        if value is None:
            self._entries.pop(key, None)
            return None
        return self._kept(key, value, now, unchanged=forgotten == self._forgotten)

    def forget(self) -> None:
        """Everything is asked for anew at its next use; until the database answers, the old answers stand."""
        self._forgotten += 1
        for entry in self._entries.values():
            entry.fresh_until = 0.0

    def _kept(self, key: Key, value: Value, asked_at: float, *, unchanged: bool) -> Value:
        """What may have been read before a change that we heard of is not fresh, and replaces nothing newer."""
        entry = self._entries.get(key)
        if not unchanged and entry is not None and entry.given_at > asked_at:
            return entry.value
        if len(self._entries) >= LIMIT:
            self._entries.clear()
        # Fresh from before the look.
        self._entries[key] = _Entry(value, asked_at + self._seconds if unchanged else 0.0, asked_at)
        return value

    def _stale(self, key: Key, error: Exception) -> Value:
        entry = self._entries.get(key)
        if entry is None or time.monotonic() > entry.given_at + OUTAGE_SECONDS:
            log.warning("the database cannot be asked: %s", error)
            raise Unavailable("The service cannot look this up just now; try again.", retry_after=2) from error
        entry.fresh_until = time.monotonic() + AGAIN_SECONDS
        return entry.value
