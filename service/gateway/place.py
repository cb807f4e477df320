"""Which replica gets a request: rendezvous hashing with bounded load.

Every gateway computes the same order from the same list, so an adapter stays where it is loaded without anyone keeping
a table, and when a replica goes only its own adapters move. Load is what this process has in flight.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Generator
from contextlib import contextmanager

from service.errors import Unavailable
from service.replicas.membership import Membership, Replica

LOAD_FACTOR = 1.25
"""A replica with more than so many times its share passes a request on to the next in order."""


class Placement:
    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._in_flight: Counter[str] = Counter()

    def choose(self, base: str, key: str, tried: Collection[str] = ()) -> Replica:
        """The best replica for `key` that was not tried, or the best of all where every one was.

        Raises Unavailable with code `no_replica` where none is ready.
        """
        ready = self._membership.ready(base)
        if not ready:
            raise Unavailable("The model server is starting; try again shortly.", code="no_replica", retry_after=2)
        if len(ready) == 1:
            return ready[0]
        bound = math.ceil(LOAD_FACTOR * (sum(self._in_flight[replica.id] for replica in ready) + 1) / len(ready))

        def rank(replica: Replica) -> tuple[bool, bool, bool, bytes]:
            full = self._in_flight[replica.id] >= bound
            return replica.id in tried, self._membership.is_suspect(replica), full, _weight(key, replica.id)

        return min(ready, key=rank)

    @contextmanager
    def occupied(self, replica: Replica) -> Generator[None, None, None]:
        """Counts one request on `replica` while the block runs."""
        self._in_flight[replica.id] += 1
        try:
            yield
        finally:
            self._in_flight[replica.id] -= 1
            if not self._in_flight[replica.id]:
                del self._in_flight[replica.id]


def _weight(key: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{key}\0{replica}".encode(), digest_size=8).digest()
