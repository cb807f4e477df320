"""The names that vLLM knows, in order of use, and which of them make room for others.

First what nobody has used of late, however few its tenant has; then what the tenant with most of them used longest ago.
So a crowd of adapters pushes out its own, not the one that another tenant is at, even between two of its requests.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LATE_SECONDS = 60.0
"""Unused for so long, an adapter is nobody's share."""


@dataclass(frozen=True)
class Use:
    """The last one."""

    tenant: str
    at: float


class KnownAdapters:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: OrderedDict[str, Use] = OrderedDict()

    def __contains__(self, adapter: str) -> bool:
        return adapter in self._uses

    def __len__(self) -> int:
        return len(self._uses)

    def use(self, adapter: str, tenant: str) -> None:
        self._uses[adapter] = Use(tenant, self._clock())
        self._uses.move_to_end(adapter)

    def forget(self, adapter: str) -> None:
        del self._uses[adapter]

    def recent_first(self) -> Iterator[str]:
        return reversed(self._uses)

    def first_to_go(self, wanted: Callable[[str], bool]) -> list[str]:
        """All of them. What is `wanted` goes after the rest of its tenant's: it would only be loaded again."""
        late = self._clock() - LATE_SECONDS
        kept = {name for name, use in self._uses.items() if use.at > late or wanted(name)}
        shares = Counter(self._uses[name].tenant for name in kept)

        def staying(adapter: str) -> tuple[int, bool]:
            share = shares[self._uses[adapter].tenant] if adapter in kept else len(self._uses) + 1
            return -share, wanted(adapter)

        return sorted(self._uses, key=staying)
