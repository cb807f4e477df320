"""How registered adapters are named: `support-bot`, `support-bot@prod`, `support-bot@v3`."""

import re
from dataclasses import dataclass

DEFAULT_ALIAS = "default"
VERSION = re.compile(r"v([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Reference:
    """`version` is known where the reference names one; otherwise `alias` points at it."""

    adapter: str
    alias: str | None
    version: int | None

    @classmethod
    def of(cls, reference: str) -> "Reference":
        adapter, _, rest = reference.partition("@")
        found = VERSION.fullmatch(rest)
        if not adapter or rest.startswith("@"):
            raise ValueError(f"{reference!r} names no adapter; write name, name@alias or name@v3")
        if found:
            return cls(adapter, None, int(found[1]))
        return cls(adapter, rest or DEFAULT_ALIAS, None)
