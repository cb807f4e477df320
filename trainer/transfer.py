"""Bytes between presigned URLs and the local disk, hashed on the way. Knows neither jobs nor leases.

The store sees no token of ours: a presigned URL is all it needs, and redirects are not followed.
"""

import asyncio
import base64
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from service.contracts.manifest import ManifestFile
from service.contracts.transfer import SourceFile
from trainer.control import pause

CHUNK_BYTES = 1 << 20
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0
SLOWEST_BYTES_PER_SECOND = 32_000
CORRUPT_TRIES = 3


class StoreAway(Exception):
    """The object store gave no usable answer within the caller's patience."""


class UrlRefused(Exception):
    """The URL no longer opens anything; a new lease or a new upload request brings a fresh one."""


class ObjectGone(Exception):
    """There is no such object."""


class Corrupt(Exception):
    """What arrives is not what was promised, however often it is fetched."""


class _Damaged(Exception):
    """One transfer whose bytes did not match."""


class _BadAnswer(Exception):
    """A status that may be another one next time."""


@dataclass(frozen=True)
class Digest:
    sha256: str
    md5: str
    size: int


def new_store_session() -> aiohttp.ClientSession:
    """Bodies arrive as stored: an object that carries an encoding is still hashed as it lies."""
    return aiohttp.ClientSession(auto_decompress=False, headers={"Accept-Encoding": "identity"})


def digest(path: Path) -> Digest:
    """Reads the whole file; call it in a thread."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
            md5.update(chunk)
            size += len(chunk)
    return Digest(sha256.hexdigest(), base64.b64encode(md5.digest()).decode(), size)


def digest_of(body: bytes) -> Digest:
    md5 = hashlib.md5(body, usedforsecurity=False).digest()
    return Digest(hashlib.sha256(body).hexdigest(), base64.b64encode(md5).decode(), len(body))


async def download(
    session: aiohttp.ClientSession, url: str, expected: ManifestFile | SourceFile, target: Path, patience: float
) -> None:
    """Fetches into `target`, which exists only if it is the promised file. Of some only the size is promised.

    Raises StoreAway, UrlRefused, ObjectGone or Corrupt; OSError where the local disk fails.
    """
    deadline, attempt, damaged = time.monotonic() + patience, 0, 0
    partial = target.with_name(target.name + ".part")
    while True:
        try:
            await _fetch(session, url, expected, partial)
        except _Damaged as error:
            damaged += 1
            if damaged == CORRUPT_TRIES:
                raise Corrupt(str(error)) from None
            problem = str(error)
        except (aiohttp.ClientError, TimeoutError, _BadAnswer) as error:
            problem = _in_words(error)
        else:
            partial.rename(target)
            return
        finally:
            partial.unlink(missing_ok=True)
        await _wait(attempt, deadline, problem)
        attempt += 1


async def upload(session: aiohttp.ClientSession, url: str, body: Path | bytes, sums: Digest, patience: float) -> None:
    """Stores a file, or bytes at hand. Content-MD5 makes the store refuse a body damaged on the way.

    Raises StoreAway or UrlRefused; OSError where the local disk fails.
    """
    deadline, attempt = time.monotonic() + patience, 0
    headers = {"Content-MD5": sums.md5, "Content-Type": "application/octet-stream"}
    while True:
        try:
            data = await asyncio.to_thread(body.open, "rb") if isinstance(body, Path) else body
            timeout = _limits(sums.size)
            async with session.put(url, data=data, headers=headers, timeout=timeout, allow_redirects=False) as answer:
                _raise_for(answer)
                await answer.read()
                return
        except (aiohttp.ClientError, TimeoutError, _BadAnswer) as error:
            problem = _in_words(error)
        await _wait(attempt, deadline, problem)
        attempt += 1


async def _fetch(session: aiohttp.ClientSession, url: str, expected: ManifestFile | SourceFile, partial: Path) -> None:
    sha256, size = hashlib.sha256(), 0
    with partial.open("wb") as file:

        def keep(chunk: bytes) -> None:
            sha256.update(chunk)
            file.write(chunk)

        async with session.get(url, timeout=_limits(expected.size), allow_redirects=False) as answer:
            _raise_for(answer)
            async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                size += len(chunk)
                if size > expected.size:
                    raise _Damaged(f"more than the promised {expected.size} bytes")
                await asyncio.to_thread(keep, chunk)
    if size != expected.size or expected.sha256 not in (None, sha256.hexdigest()):
        raise _Damaged(f"{size} bytes that do not hash to the promised SHA-256")


def _raise_for(answer: aiohttp.ClientResponse) -> None:
    if answer.status == 404:
        raise ObjectGone(f"HTTP {answer.status}")
    if answer.status in (400, 401, 403):
        raise UrlRefused(f"HTTP {answer.status}")
    if not 200 <= answer.status < 300:
        raise _BadAnswer(f"HTTP {answer.status}")


def _in_words(error: Exception) -> str:
    """Without addresses: these words reach the job's owner, and a presigned URL is a secret."""
    return str(error) if isinstance(error, _BadAnswer) else type(error).__name__


def _limits(size: int) -> aiohttp.ClientTimeout:
    """A slow store is waited for in proportion to the size; a silent one is not."""
    total = SILENCE_SECONDS + size / SLOWEST_BYTES_PER_SECOND
    return aiohttp.ClientTimeout(total=total, connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)


async def _wait(attempt: int, deadline: float, problem: str) -> None:
    wait = pause(attempt)
    if time.monotonic() + wait > deadline:
        raise StoreAway(problem)
    await asyncio.sleep(wait)
