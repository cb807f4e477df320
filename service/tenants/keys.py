"""The form of a project key and what is kept of it.

`sk-weft-` + 12 characters of public id + 43 of secret + 6 of checksum, all base62. The checksum turns typing errors
away without a look at the database; the secret has 256 bits, so a plain SHA-256 at rest is enough.
"""

import hashlib
import zlib

from service.contracts.ids import BASE62, random_base62

PREFIX = "sk-weft-"
ADMIN_PREFIX = "sk-weft-admin-"
PUBLIC, SECRET, CHECKSUM = 12, 43, 6


def make_key(prefix: str = PREFIX) -> str:
    body = random_base62(PUBLIC + SECRET)
    return prefix + body + _checksum(body)


def public_id_of(key: str, prefix: str = PREFIX) -> str | None:
    """The part that finds the row, or None where the text cannot be a key of this prefix."""
    body = key.removeprefix(prefix)
    if not key.startswith(prefix) or len(body) != PUBLIC + SECRET + CHECKSUM or not body.isascii():
        return None
    if _checksum(body[:-CHECKSUM]) != body[-CHECKSUM:]:
        return None
    return body[:PUBLIC]


def hash_key(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def redact(key: str, prefix: str = PREFIX) -> str:
    return f"{key[: len(prefix) + 4]}…{key[-4:]}"


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    digits = ""
    for _ in range(CHECKSUM):
        number, digit = divmod(number, 62)
        digits += BASE62[digit]
    return digits
