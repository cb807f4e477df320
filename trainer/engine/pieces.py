"""A batch or a validation file on its way through the steps, piece by piece. Owns what is left of it and its sums."""

from collections.abc import Iterable

from trainer.engine.adapter import Measured, Work


class Pieces:
    """Hands out one piece of work at a time; reads the one after it ahead, to know when none is left."""

    def __init__(self, works: Iterable[Work]) -> None:
        self._works = iter(works)
        self._next = next(self._works, None)
        self._sum: Measured | None = None

    @property
    def left(self) -> bool:
        return self._next is not None

    @property
    def total(self) -> Measured:
        """Of what has been added."""
        assert self._sum is not None
        return self._sum

    def take(self) -> Work:
        assert self._next is not None
        taken, self._next = self._next, next(self._works, None)
        return taken

    def add(self, measured: Measured) -> None:
        self._sum = measured if self._sum is None else self._sum + measured
