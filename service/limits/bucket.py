"""A token bucket of a minute's worth, kept as one number: when it will be full again (GCRA). Knows no tenants."""

from math import ceil, floor

WINDOW = 60.0
"""Seconds in which an empty bucket fills. A rate's limit is what a full one holds."""


class Bucket:
    """`until` is the moment at which the bucket is full again, by whatever clock the caller passes as `now`.

    `unshared` is how far this process moved it since that was last taken by `take_unshared`.
    """

    __slots__ = ("unshared", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self.unshared = 0.0

    def wait(self, now: float, limit: int, amount: int) -> float:
        """Seconds until so much can be taken; 0 now, infinite where it is more than a full bucket holds."""
        if amount > limit:
            return float("inf")
        if not amount:
            return 0.0
        return max(0.0, max(self.until, now) + amount * WINDOW / limit - now - WINDOW)

    def take(self, now: float, limit: int, amount: int) -> None:
        """Also where nothing is left: what was used was used. A negative amount gives back."""
        if limit:
            moved = amount * WINDOW / limit
            self.until = max(self.until, now) + moved
            self.unshared += moved

    def left(self, now: float, limit: int) -> int:
        return max(0, floor((WINDOW - max(0.0, self.until - now)) * limit / WINDOW + 1e-6))

    def full_in(self, now: float) -> float:
        return max(0.0, self.until - now)

    def take_unshared(self) -> float:
        taken, self.unshared = self.unshared, 0.0
        return taken

    def adopt(self, until: float) -> None:
        """What all processes together know, and what this one used since it asked."""
        self.until = until + self.unshared


def shown(seconds: float) -> str:
    """A duration in OpenAI's way: 12ms, 1.5s, 6m0s."""
    milliseconds = ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
