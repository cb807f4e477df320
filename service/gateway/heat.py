"""How many replicas an adapter may be spread over, by how much of it is asked for. Where they are is `place`'s.

An adapter grows by one replica when more of it has been in flight for some seconds than its replicas should carry, and
loses one after a much longer quiet time: a replica that has just loaded it should not lose it to a short pause.
"""

import time
from dataclasses import dataclass

GROW_SECONDS = 3.0
SHRINK_SECONDS = 60.0
COOL_SHARE = 0.5
"""One replica fewer only where the rest would then be at no more than this share of what makes them grow."""
MANY = 1000


@dataclass(slots=True)
class _Warmth:
    in_flight: int = 0
    width: int = 1
    over_since: float | None = None
    under_since: float | None = None


class Heat:
    """`share` requests in flight of one adapter are as many as one replica should carry."""

    def __init__(self, share: int) -> None:
        self._share = share
        self._adapters: dict[str, _Warmth] = {}

    def width(self, adapter: str) -> int:
        """Over how many replicas the adapter may be spread now."""
        warmth = self._adapters.get(adapter)
        if warmth is None:
            return 1
        self._settle(warmth)
        return warmth.width

    def begin(self, adapter: str) -> None:
        """One more request of the adapter is in flight."""
        warmth = self._adapters.get(adapter)
        if warmth is None:
            if len(self._adapters) > MANY:
                self._forget_the_cold()
            warmth = self._adapters[adapter] = _Warmth()
        self._count(warmth, 1)

    def end(self, adapter: str) -> None:
        """One request of the adapter is over."""
        warmth = self._adapters[adapter]
        self._count(warmth, -1)
        if _is_cold(warmth):
            del self._adapters[adapter]

    def _count(self, warmth: _Warmth, change: int) -> None:
        # Settled before the change too: what was in flight until now has been so since the change before.
        self._settle(warmth)
        warmth.in_flight += change
        self._settle(warmth)

    def _settle(self, warmth: _Warmth) -> None:
        now = time.monotonic()
        if warmth.in_flight <= warmth.width * self._share:
            warmth.over_since = None
        elif warmth.over_since is None:
            warmth.over_since = now
        elif now - warmth.over_since >= GROW_SECONDS:
            warmth.width, warmth.over_since = warmth.width + 1, now
        if warmth.in_flight > (warmth.width - 1) * self._share * COOL_SHARE:
            warmth.under_since = None
        elif warmth.under_since is None:
            warmth.under_since = now
        while warmth.width > 1 and warmth.under_since and now - warmth.under_since >= SHRINK_SECONDS:
            warmth.width, warmth.under_since = warmth.width - 1, warmth.under_since + SHRINK_SECONDS

    def _forget_the_cold(self) -> None:
        for adapter, warmth in list(self._adapters.items()):
            self._settle(warmth)
            if _is_cold(warmth):
                del self._adapters[adapter]


def _is_cold(warmth: _Warmth) -> bool:
    return warmth.in_flight == 0 and warmth.width == 1
