"""Which examples share a row: best fit, the longest first, from their lengths alone.

Owns the arithmetic. Equal lengths are placed together, so that a million examples take milliseconds: while a pack has
room for another of the same length it stays the tightest one that has, and is filled up.
"""

from bisect import bisect_left, insort

import numpy as np


class Packs:
    """Of each pack, the numbers of its examples in rising order. 16 bytes an example."""

    def __init__(self, pack_of: np.ndarray) -> None:
        self._members = np.argsort(pack_of, kind="stable")
        self._ends = np.cumsum(np.bincount(pack_of))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, pack: int) -> np.ndarray:
        return self._members[self._ends[pack - 1] if pack else 0 : self._ends[pack]]


class _Rooms:
    """Open packs by the tokens they have left."""

    def __init__(self) -> None:
        self._spaces: list[int] = []
        self._packs: dict[int, np.ndarray] = {}

    def tightest(self, length: int) -> tuple[int, np.ndarray] | None:
        """Takes out the packs with the least room for `length`."""
        at = bisect_left(self._spaces, length)
        if at == len(self._spaces):
            return None
        space = self._spaces.pop(at)
        return space, self._packs.pop(space)

    def put(self, space: int, packs: np.ndarray) -> None:
        if space <= 0 or not len(packs):
            return
        if space not in self._packs:
            insort(self._spaces, space)
            self._packs[space] = packs
        else:
            self._packs[space] = np.concatenate((self._packs[space], packs))


def pack(lengths: np.ndarray, limit: int) -> Packs:
    """Every example once, in packs of at most `limit` tokens. A longer one has a pack of its own."""
    pack_of = np.zeros(len(lengths), dtype=np.int64)
    longest_first = np.argsort(-lengths, kind="stable")
    borders = np.flatnonzero(np.diff(lengths[longest_first])) + 1
    rooms, opened = _Rooms(), 0
    for alike in np.split(longest_first, borders):
        while len(alike):
            length = int(lengths[alike[0]])
            found = rooms.tightest(length)
            space, packs = found or (max(limit, length), np.arange(opened, opened + len(alike)))
            each = space // length
            used, rest = np.split(packs, [-(-len(alike) // each)])
            if found:
                rooms.put(space, rest)
            else:
                opened += len(used)
            places = np.repeat(used, each)[: len(alike)]
            pack_of[alike[: len(places)]] = places
            rooms.put(space - each * length, used[:-1])
            rooms.put(space - (len(places) - each * (len(used) - 1)) * length, used[-1:])
            alike = alike[len(places) :]
    return Packs(pack_of)
