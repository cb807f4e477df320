"""Looks at a file's bytes as they pass: how many there are, their hashes and, of some purposes, what the lines hold."""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from service.errors import PayloadTooLarge
from service.files import requests
from service.files.checking import inspector
from service.files.datasets import MAX_PROBLEMS, refusal, summary
from service.files.inspection import CHECKED_PURPOSES, PATIENCE, Findings, Inspection
from service.files.reservation import NewFile

PIECE_BYTES = 256 << 10
IN_PROCESS_BYTES = 4 << 20
"""Up to this size a thread inspects a file sooner than a child has started."""


@dataclass(frozen=True)
class Content:
    size: int
    sha256: str
    md5: str | None
    findings: Findings | None


class Inspecting(Protocol):
    @property
    def given_up(self) -> bool: ...
    def feed(self, piece: bytes, /) -> None: ...
    def finish(self) -> Findings: ...


class Examination:
    """Fed with a content in order; calls block."""

    def __init__(self, inspecting: Inspecting | None, *, refusable: bool, md5: bool) -> None:
        self._inspecting, self._refusable = inspecting, refusable
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self._size = 0

    @property
    def refused(self) -> bool:
        """What follows need not be fed: the file will not be kept."""
        return self._refusable and self._inspecting is not None and self._inspecting.given_up

    def feed(self, piece: bytes) -> None:
        self._size += len(piece)
        self._sha256.update(piece)
        if self._md5 is not None:
            self._md5.update(piece)
        if self._inspecting is not None:
            self._inspecting.feed(piece)

    def finish(self) -> Content:
        findings = None if self._inspecting is None else self._inspecting.finish()
        md5 = None if self._md5 is None else self._md5.hexdigest()
        return Content(self._size, self._sha256.hexdigest(), md5, findings)


@contextmanager
def examining(
    purpose: str, size: int, max_line_bytes: int, *, refusable: bool, md5: bool = False
) -> Generator[Examination]:
    """An examination of a content of `size` bytes.

    A refusable training file is looked at until it is certain to be refused, any other to the end and reported on.
    """
    refusable = refusable and purpose == "fine-tune"
    patience = MAX_PROBLEMS if refusable else PATIENCE
    if purpose not in CHECKED_PURPOSES:
        yield Examination(None, refusable=False, md5=md5)
    elif size <= IN_PROCESS_BYTES:
        yield Examination(Inspection(purpose, max_line_bytes, patience=patience), refusable=refusable, md5=md5)
    else:
        with inspector(purpose, max_line_bytes, size, patience=patience) as child:
            yield Examination(child, refusable=refusable, md5=md5)


def require_size(purpose: str, size: int, most: int, param: str) -> None:
    most = min(most, requests.MAX_BYTES) if purpose == "batch" else most
    if size > most:
        raise PayloadTooLarge(f"The file is larger than {most} bytes.", param=param)


def described(filename: str, purpose: str, content: Content) -> NewFile:
    """The row's values of a content that is kept, whatever was found in it."""
    found = content.findings
    bad = found is not None and bool(found.problems)
    return NewFile(
        filename=filename,
        purpose=purpose,
        size=content.size,
        sha256=content.sha256,
        status="error" if bad else "processed",
        status_details=summary(found)[:1000] if bad and found is not None else None,
        examples=0 if found is None else found.examples,
        example_format=found.example_format if found is not None and purpose == "fine-tune" else None,
    )


def refuse_bad(purpose: str, content: Content) -> None:
    """Raises InvalidRequest for a training file with problems; files of other purposes are kept with theirs."""
    if purpose == "fine-tune" and content.findings is not None and content.findings.problems:
        raise refusal(content.findings)
