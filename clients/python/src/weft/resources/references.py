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
        if not adapter or "@" in rest:
            raise ValueError(f"{reference!r} names no adapter; write name, name@alias or name@v3")
        if found:
            return cls(adapter, None, int(found[1]))
        return cls(adapter, rest or DEFAULT_ALIAS, None)


def named_alias(reference: str, alias: str | None = None) -> tuple[str, str]:
    """The adapter and the alias of `name@alias`, of a name with the alias beside it, or of a name and its `default`.

    Raises ValueError where a version is named, or where there are two aliases.
    """
    known = Reference.of(reference)
    if known.version is not None:
        raise ValueError(f"{reference!r} names a version, and an alias is meant; write {known.adapter}@prod")
    if alias is None:
        return known.adapter, known.alias or DEFAULT_ALIAS
    if "@" in reference and alias != known.alias:
        raise ValueError(f"{reference!r} and {alias!r} name two aliases")
    return known.adapter, alias
