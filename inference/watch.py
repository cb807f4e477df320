"""Whether vLLM still works: dead, hung, or answering other than it did when it was fresh.

A dead engine fails vLLM's health at once. A hung one answers health and brings forth nothing, so a canary asks the base
for one token every few seconds. A canary that waits is no alarm while tokens appear for others, nor, for longer, while
the engine computes: on a loaded machine one step may take seconds. A stopped engine uses no processor at all.
"""

import asyncio
import math
import time

from inference.child import Child, ChildApi
from inference.settings import ReplicaSettings

SPIN_SECONDS = 30.0
"""An engine that computes but brings forth nothing for so long is hung too."""
CANARY_SECONDS = 60.0
LOGPROB_TOLERANCE = 0.25
"""Batches round differently; values that are not numbers, or weights that changed, are far outside."""
WRONG_CANARIES = 2
_LOOK_SECONDS = 1.0
_COMPUTES = 0.02
"""Seconds of processor time between two looks."""


class Watch:
    """One life of vLLM, from its first canary on. `expected` is what that one answered."""

    def __init__(self, child: Child, api: ChildApi, settings: ReplicaSettings, expected: float) -> None:
        self._child = child
        self._api = api
        self._settings = settings
        self._expected = expected
        self._wrong = 0
        self._tokens: float | None = None
        self._processor: float | None = child.engine_seconds()
        self._sign = self._computed = self._next = time.monotonic()

    async def failure(self) -> str:
        """Returns once vLLM has to be replaced: why."""
        canary: asyncio.Task[float | None] | None = None
        try:
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                if await self._api.dead():
                    return "its engine is dead"
                if canary is None and time.monotonic() >= self._next:
                    canary = asyncio.create_task(self._api.canary(CANARY_SECONDS))
                    await asyncio.wait({canary}, timeout=_LOOK_SECONDS)
                if canary is not None and canary.done():
                    self._judge(canary.result())
                    canary = None
                if self._wrong >= WRONG_CANARIES:
                    return "its base no longer answers as it did"
                await self._look()
                if self._hung():
                    return "its engine hangs"
        finally:
            if canary is not None:
                canary.cancel()

    def _judge(self, logprob: float | None) -> None:
        """None: refused or unreachable, which says nothing about the engine."""
        if logprob is None:
            self._next = time.monotonic() + _LOOK_SECONDS
            return
        self._sign, self._tokens = time.monotonic(), None
        right = math.isfinite(logprob) and abs(logprob - self._expected) <= LOGPROB_TOLERANCE
        self._wrong = 0 if right else self._wrong + 1
        self._next = self._sign + (self._settings.canary_seconds if right else 0.0)

    async def _look(self) -> None:
        now = time.monotonic()
        processor = self._child.engine_seconds()
        if processor is None or self._processor is None or abs(processor - self._processor) >= _COMPUTES:
            self._computed = now
        self._processor = processor
        if now - self._sign > _LOOK_SECONDS * 2:
            tokens = await self._api.tokens_done()
            if self._tokens is not None and tokens not in (None, self._tokens):
                self._sign = now
            self._tokens = tokens

    def _hung(self) -> bool:
        now = time.monotonic()
        # Until the canary is due nobody has asked the engine for anything.
        silent = now - max(self._sign, min(self._next, now))
        computing = now - self._computed < self._settings.hang_seconds
        return silent >= (SPIN_SECONDS if computing else self._settings.hang_seconds)
