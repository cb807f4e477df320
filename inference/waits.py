"""How long requests wait for others before vLLM, told apart from what their own adapters' loads take.

A load is fetching, verifying and taking an adapter into the engine. Waiting for a download to be allowed, for room on
disk or for vLLM's registry is none: that is others' doing.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _now() -> float:
    return asyncio.get_running_loop().time()


class LoadClock:
    """Seconds of each adapter's load, which requests that come together share. Remembers what is watched, no more."""

    def __init__(self) -> None:
        self._loads: Counter[str] = Counter()
        self._since: dict[str, float] = {}
        self._watches: Counter[str] = Counter()
        self._spent: dict[str, float] = {}

    @contextmanager
    def loading(self, adapter: str) -> Iterator[None]:
        """Of several at once, the time counts once."""
        self._loads[adapter] += 1
        self._since.setdefault(adapter, _now())
        try:
            yield
        finally:
            self._loads[adapter] -= 1
            if not self._loads[adapter]:
                del self._loads[adapter]
                took = _now() - self._since.pop(adapter)
                if adapter in self._watches:
                    self._spent[adapter] = self._spent.get(adapter, 0.0) + took

    @contextmanager
    def watched(self, adapter: str) -> Iterator[Callable[[], float]]:
        """In the block, the call says how many seconds since its beginning were load."""
        self._watches[adapter] += 1
        before = self._seconds(adapter)
        try:
            yield lambda: self._seconds(adapter) - before
        finally:
            self._watches[adapter] -= 1
            if not self._watches[adapter]:
                del self._watches[adapter]
                self._spent.pop(adapter, None)

    def _seconds(self, adapter: str) -> float:
        begun = self._since.get(adapter)
        return self._spent.get(adapter, 0.0) + (0.0 if begun is None else _now() - begun)


class Wait:
    """One request's, from its making on."""

    def __init__(self, clock: LoadClock) -> None:
        self._clock = clock
        self._began = _now()
        self._loading = 0.0

    @contextmanager
    def loading(self, adapter: str) -> Iterator[None]:
        """The request needs its adapter, and does nothing else in the block."""
        with self._clock.watched(adapter) as spent:
            try:
                yield
            finally:
                self._loading += spent()

    @property
    def seconds(self) -> float:
        return max(0.0, _now() - self._began - self._loading)
