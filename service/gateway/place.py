"""Which replica gets a request: rendezvous hashing with bounded load.

Every gateway computes the same order from the same list, so an adapter stays where it is loaded without anyone keeping
a table, and when a replica goes only its own adapters move. Load is what this process has in flight. How many replicas
a hot adapter is spread over is `heat`'s.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager

from service.errors import Unavailable
from service.gateway.heat import Heat
from service.replicas.membership import Membership, Replica

LOAD_FACTOR = 1.25
"""A replica with more than so many times its share passes a request on to the next in order."""


class Placement:
    def __init__(self, membership: Membership, heat: Heat) -> None:
        self._membership = membership
        self._heat = heat
        self._in_flight: Counter[str] = Counter()
        self._of_key: Counter[tuple[str, str]] = Counter()

    def choose(self, base: str, key: str, tried: Collection[str] = ()) -> Replica:
        """The best replica for `key` that was not tried, or the best of all where every one was.

        Raises Unavailable with code `no_replica` where none is ready.
        """
        ready = self._membership.ready(base)
        if not ready:
            raise Unavailable("The model server is starting; try again shortly.", code="no_replica", retry_after=2)
        if len(ready) == 1:
            return ready[0]
        untried = [replica for replica in ready if replica.id not in tried] or ready
        trusted = [replica for replica in untried if not self._membership.is_suspect(replica)] or untried
        order = sorted(trusted, key=lambda replica: _weight(key, replica.id))
        allowed = self._with_room(order, ready)[: self._heat.width(key)]
        # Of equals the first in order is taken; who holds the adapter is known a heartbeat late and only breaks ties.
        return min(allowed, key=lambda replica: (self._of_key[key, replica.id], key not in replica.adapters))

    @contextmanager
    def occupied(self, replica: Replica, key: str) -> Generator[None, None, None]:
        """Counts one request of `key` on `replica` while the block runs."""
        self._count(replica.id, key, 1)
        self._heat.begin(key)
        try:
            yield
        finally:
            self._count(replica.id, key, -1)
            self._heat.end(key)

    def _with_room(self, order: Sequence[Replica], ready: Sequence[Replica]) -> Sequence[Replica]:
        """Fewer requests than adapter slots never make each other wait, so below that nobody is sent elsewhere."""
        bound = math.ceil(LOAD_FACTOR * (sum(self._in_flight[each.id] for each in ready) + 1) / len(ready))
        return [each for each in order if self._in_flight[each.id] < max(bound, each.max_loras)] or order

    def _count(self, replica: str, key: str, change: int) -> None:
        self._in_flight[replica] += change
        self._of_key[key, replica] += change
        if not self._in_flight[replica]:
            del self._in_flight[replica]
        if not self._of_key[key, replica]:
            del self._of_key[key, replica]


def _weight(key: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{key}\0{replica}".encode(), digest_size=8).digest()
