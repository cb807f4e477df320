"""How often one address may come with keys that are not keys: each look for one is a question to the database.

Counts refusals only, in memory and for this process. Whoever shares an address with such a caller is not held up: a key
that was good here before is looked up as ever, and addresses of this machine, where a proxy that names nobody would
speak for everyone, are not counted. Others' addresses are the server's to know (uvicorn's `forwarded_allow_ips`).
"""

import ipaddress
import time
from math import ceil

from service.errors import RateLimited

BURST = 20
PER_SECOND = 5.0
ADDRESSES = 10_000
NETWORK = 64
"""Bits of an IPv6 address that count: who has one of a network may choose the others."""


class Throttle:
    """A bucket of BURST refusals for each address. A bucket is kept as the time at which it is full again."""

    def __init__(self) -> None:
        self._full_at: dict[str, float] = {}

    def check(self, address: str | None) -> None:
        """Raises RateLimited where the address has used up its refusals."""
        # Half a refusal less than a whole bucket, which sums of fractions would miss.
        wait = self._full_at.get(_counted(address), 0.0) - time.monotonic() - (BURST - 0.5) / PER_SECOND
        if wait > 0:
            raise RateLimited(
                "Too many requests with an incorrect API key came from your address; wait, and correct the key.",
                code="too_many_bad_keys",
                headers={"Retry-After": str(ceil(wait))},
            )

    def refused(self, address: str | None) -> None:
        """Takes one from the bucket."""
        place, now = _counted(address), time.monotonic()
        if not place:
            return
        if len(self._full_at) >= ADDRESSES and place not in self._full_at:
            self._full_at = {known: full_at for known, full_at in self._full_at.items() if full_at > now}
        # Where that many are at it at once, nobody new is counted: what is kept here must stay small.
        if len(self._full_at) < ADDRESSES or place in self._full_at:
            self._full_at[place] = max(self._full_at.get(place, now), now) + 1 / PER_SECOND


def _counted(address: str | None) -> str:
    """What stands for the address, or nothing where it is not counted."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = parsed.ipv4_mapped or parsed
    if parsed.is_loopback:
        return ""
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((parsed, NETWORK), strict=False))
