"""Puts the parts of an upload together as one object, read and looked at once on its way from the store to the store.

The store copies nothing by itself: stores that run from a folder answer such a copy with an empty part, and S3 takes no
parts below 5 MiB except the last, while those of an upload have any size.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.contracts.ids import FileId, ProjectId
from service.contracts.layout import file_key
from service.contracts.store import ObjectStore
from service.errors import InvalidRequest
from service.files.content import Content, Examination, examining
from service.uploads.models import UploadRow
from service.uploads.parts import part_key

READ_BYTES = 1 << 20


class Refused(Exception):
    """The content will not be kept; `content` says why."""

    def __init__(self, content: Content) -> None:
        super().__init__("refused")
        self.content = content


class Stopped(Exception):
    """Nobody waits for it any more."""


@dataclass(frozen=True)
class StoredPart:
    id: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Assembly:
    """What is to be put together, and under which file's key."""

    upload: UploadRow
    file_id: FileId
    parts: Sequence[StoredPart]
    max_line_bytes: int
    refusable: bool
    md5: str | None

    def run(self, store: ObjectStore, stop: threading.Event) -> Content:
        """Stores the object; blocks. Raises Refused where a training file is certain to be bad: nothing is stored then.

        Raises InvalidRequest where a part is not what was sent.
        """
        upload = self.upload
        limit = self.max_line_bytes
        with examining(
            upload.purpose, upload.bytes, limit, refusable=self.refusable, md5=self.md5 is not None
        ) as examination:
            joined = _Joined(self._pieces(store, stop), examination)
            store.put_stream(file_key(ProjectId(upload.project_id), self.file_id), joined)
            return examination.finish()

    def _pieces(self, store: ObjectStore, stop: threading.Event) -> Iterator[bytes]:
        for part in self.parts:
            digest = hashlib.sha256()
            for piece in store.open(part_key(ProjectId(self.upload.project_id), self.upload.id, part.id), READ_BYTES):
                if stop.is_set():
                    raise Stopped
                digest.update(piece)
                yield piece
            if digest.hexdigest() != part.sha256:
                raise InvalidRequest(
                    f"Part '{part.id}' was damaged in the store; send it again.", code="damaged_part", param="part_ids"
                )


class _Joined:
    """The parts as what the store reads from; whatever is read is examined."""

    def __init__(self, pieces: Iterator[bytes], examination: Examination) -> None:
        self._pieces, self._examination = pieces, examination
        self._held = bytearray()

    def read(self, n: int = -1, /) -> bytes:
        while n < 0 or len(self._held) < n:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self._examination.feed(piece)
            if self._examination.refused:
                raise Refused(self._examination.finish())
            self._held += piece
        taken = bytes(self._held if n < 0 else self._held[:n])
        del self._held[: len(taken)]
        return taken
