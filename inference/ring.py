"""Deficit round robin with debt: whose turn it is, where what a turn costs is only known after it.

A name is served while it has credit, pays the likely cost at once and the difference at the end. Where nobody who could
be served has credit, everybody gets as many quanta as it takes. Queues, limits and slots are the turns' matter.
"""

from collections import OrderedDict
from collections.abc import Collection
from math import floor
from typing import Generic, TypeVar

N = TypeVar("N")

MOST_QUANTA = 8
"""Credit that a name is given at most while it cannot be served; refunds come on top."""


class Ring(Generic[N]):
    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        self._credit: OrderedDict[N, float] = OrderedDict()

    def join(self, name: N) -> None:
        """A newcomer starts without credit and without debt."""
        self._credit.setdefault(name, 0.0)

    def leave(self, name: N) -> None:
        self._credit.pop(name, None)

    def in_debt(self, name: N) -> bool:
        return self._credit.get(name, 0.0) < 0

    def charge(self, name: N, amount: float) -> None:
        """Takes `amount` of the name's credit; a negative amount is a refund. Who is in debt goes to the end."""
        if name not in self._credit:
            return
        self._credit[name] -= amount
        if amount > 0 and self._credit[name] <= 0:
            self._credit.move_to_end(name)

    def pick(self, candidates: Collection[N]) -> N:
        """Whose turn it is among `candidates`, of whom at least one must be in the ring."""
        credits = {name: credit for name, credit in self._credit.items() if name in candidates}
        most = max(credits.values())
        if most > 0:
            return next(name for name, credit in credits.items() if credit > 0)
        given = (floor(-most / self._quantum) + 1) * self._quantum
        for name, credit in self._credit.items():
            self._credit[name] = max(credit, min(credit + given, self._quantum * MOST_QUANTA))
        return next(name for name in credits if self._credit[name] > 0)
