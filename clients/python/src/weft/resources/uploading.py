"""How a local file is cut, counted and checked on its way to the service.

A small file is one request; a large one goes in parts, several at a time, each sent again by itself when it fails, and
with the whole file's MD5 at the end, so that what the service puts together is what lies here.
"""

import hashlib
import io
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from openai import APIConnectionError, APIStatusError

from weft.errors import FileChanged

PLAIN_BYTES = 64 << 20
"""Files up to this size are sent in one request."""
PART_BYTES = 16 << 20
LARGEST_PART = 64 << 20
MAX_PARTS = 10_000
PARALLEL = 4
PART_ATTEMPTS = 4
"""Beside the client's own retries of each attempt."""


@dataclass(frozen=True)
class Progress:
    """Of one upload or download, in bytes."""

    done: int
    total: int


OnProgress = Callable[[Progress], object]


class Meter:
    """Tells how far a transfer is; several threads may add to it."""

    def __init__(self, total: int, tell: OnProgress | None) -> None:
        self._total, self._tell, self._done = total, tell, 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._tell is not None:
                self._tell(Progress(self._done, self._total))


class MeteredFile(io.FileIO):
    """A file that tells how far it was read; back at its beginning, as for a retry, it takes that back."""

    def __init__(self, path: Path, meter: Meter) -> None:
        super().__init__(path)
        self._meter = meter
        self._read = 0

    def read(self, size: int | None = -1) -> bytes:
        piece = super().read(-1 if size is None else size) or b""
        self._read += len(piece)
        if piece:
            self._meter.add(len(piece))
        return piece

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = super().seek(offset, whence)
        if place < self._read:
            self._meter.add(place - self._read)
            self._read = place
        return place


@dataclass(frozen=True)
class Part:
    start: int
    size: int


@dataclass(frozen=True)
class Source:
    """The file as it was when the upload began."""

    path: Path
    size: int
    modified: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> "Source":
        """Raises OSError where there is no such file."""
        place = Path(path)
        found = place.stat()
        return cls(place, found.st_size, found.st_mtime_ns)

    def parts(self, part_bytes: int | None) -> list[Part]:
        size = part_bytes or max(PART_BYTES, -(-self.size // MAX_PARTS))
        if not 0 < size <= LARGEST_PART:
            raise ValueError(f"part_bytes must be 1 to {LARGEST_PART}")
        return [Part(start, min(size, self.size - start)) for start in range(0, self.size, size)]

    def read(self, part: Part) -> bytes:
        with self.path.open("rb") as file:
            file.seek(part.start)
            return file.read(part.size)

    def md5(self) -> str:
        """Raises FileChanged where the file is not what it was."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        found = self.path.stat()
        if (found.st_size, found.st_mtime_ns) != (self.size, self.modified):
            raise FileChanged(f"{self.path} changed while it was being uploaded; upload it again.")
        return digest


def worth_retrying(error: Exception) -> bool:
    """Whether the same part may get through later."""
    if isinstance(error, APIStatusError):
        return error.status_code in (408, 429) or error.status_code >= 500
    return isinstance(error, APIConnectionError)


def delay(attempt: int) -> float:
    return min(0.5 * 2**attempt, 8.0)
