"""Which version answers a request of an alias whose traffic is split.

Whoever says who is asking always gets the same version, for as long as it has a share: each version draws a number for
them, and its weight decides how far that number counts. So when weights change, only as many change over as must, and
the same ones stay with a canary while it grows. Requests that say nothing are dealt out by chance.
"""

import math
import random
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, cast

import orjson

WHO = ("user", "safety_identifier", "prompt_cache_key")
"""Fields by which a request may say who is asking; the first that is given counts."""


def asker_of(raw: bytes) -> str | None:
    """Who a request's body says is asking. It has been parsed before, and is only read again where it is split."""
    body = cast(dict[str, Any], orjson.loads(raw))
    for name in WHO:
        value = body.get(name)
        if value and isinstance(value, str):
            return value
    return None


def chosen(place: str, shares: Sequence[tuple[int, float]], asker: str | None) -> int:
    """The index of one of `shares`, which are versions with their weights. `place` is the split's own name."""
    if asker is None:
        return random.choices(range(len(shares)), [weight for _, weight in shares])[0]
    drawn = [_drawn(f"{place}\0{version}\0{asker}", weight) for version, weight in shares]
    return drawn.index(max(drawn))


def _drawn(key: str, weight: float) -> float:
    """The greatest of these falls to each share as often as its weight says."""
    if weight <= 0:
        return -math.inf
    digest = blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
    return weight / -math.log((int.from_bytes(digest) + 1) / (2**64 + 2))
