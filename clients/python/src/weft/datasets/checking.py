"""Looks through a whole file once, with bounded memory: its bad lines, its examples' lengths, what comes twice.

Follows the service's `GET /v1/files/{id}/validation` in what it finds, in its order and in its limits.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from weft.datasets.fixes import fix_of
from weft.datasets.lines import Example, check_line
from weft.datasets.reading import InvalidLine
from weft.datasets.requests import RequestRules
from weft.types.files import Bucket, Duplicate, Duplicates, FileProblem, Lengths, Overlap, Shared

MAX_LINE_BYTES = 1 << 20
KEPT_PROBLEMS = 100
PATIENCE = 100_000
KEPT_LINES = 100
EXAMPLES = 1 << 20
BYTES_PER_TOKEN = 4
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SPACE = b" \t\r\n"
HOPELESS_LINE = 16
"""A line so many times as long as it may be ends the check: this is no file of lines."""
HOPELESS_BLANK = 100_000
"""And so do so many empty lines."""


class LineCheck:
    """Fed with the file's bytes in order; numbers the bad lines and tells `take` the good ones."""

    def __init__(self, rules: Callable[[bytes], Example], take: Callable[[int, dict[str, Any]], None]) -> None:
        self._rules, self._take_good = rules, take
        self._rest = b""
        self._overlong = 0
        self._hopeless = False
        self._blank: int | None = None
        self.line = self.examples = 0
        self.format: str | None = None
        self.problems: list[FileProblem] = []
        self.counts: Counter[str] = Counter()

    @property
    def given_up(self) -> bool:
        return self._hopeless or self.counts.total() >= PATIENCE

    def feed(self, piece: bytes) -> None:
        if self.given_up:
            return
        if not self._rest and not self._overlong and not piece.strip(SPACE):
            self._skip(piece)
            return
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._end_line(line)
        if len(self._rest) > MAX_LINE_BYTES:
            self._overlong += len(self._rest)
            self._rest = b""
            if self._overlong > HOPELESS_LINE * MAX_LINE_BYTES:
                self._end_line(b"")
                self._hopeless = True

    def finish(self) -> None:
        if self._rest or self._overlong:
            self._end_line(self._rest)
        if not self.examples and not self.counts:
            self._report(1, "empty_file", "the file holds no examples")

    def _skip(self, blank: bytes) -> None:
        if b"\n" not in blank:
            return
        self._blank = self._blank or self.line + 1
        self.line += blank.count(b"\n")
        if self.line - self._blank > HOPELESS_BLANK:
            self._report(self._blank, "blank_line", f"is blank, and so are {HOPELESS_BLANK} lines after it")
            self._hopeless = True

    def _end_line(self, line: bytes) -> None:
        self.line += 1
        overlong, self._overlong = self._overlong or len(line) > MAX_LINE_BYTES, 0
        if overlong:
            self._report(self.line, "line_too_long", f"is longer than {MAX_LINE_BYTES} bytes")
            return
        if self.line == 1 and line.startswith(BYTE_ORDER_MARK):
            self._report(1, "byte_order_mark", "begins with a byte order mark; save the file as UTF-8 without it")
            line = line.removeprefix(BYTE_ORDER_MARK)
        self._take(line.strip(SPACE))

    def _take(self, line: bytes) -> None:
        if self.given_up:
            return
        if not line:
            self._blank = self._blank or self.line
            return
        if self._blank is not None:
            # Known to be in the middle only now: empty lines at the end of a file do no harm.
            self._report(self._blank, "blank_line", "is blank")
            self._blank = None
        try:
            found, value = self._rules(line)
        except InvalidLine as error:
            self._report(self.line, error.code, error.message)
            return
        wanted = self.format = self.format or found
        if found != wanted:
            message = f"is a {found} example, the lines before are {wanted} examples"
            self._report(self.line, "mixed_formats", message)
            return
        self.examples += 1
        self._take_good(self.line, value)

    def _report(self, line: int, code: str, message: str) -> None:
        if self.given_up:
            return
        self.counts[code] += 1
        if len(self.problems) < KEPT_PROBLEMS:
            self.problems.append(FileProblem(line=line, code=code, message=message, fix=fix_of(code)))


class _Repeats:
    def __init__(self) -> None:
        self.examples = self.examined = 0
        self.pairs: list[tuple[int, int]] = []

    def count(self, line: int, before: int | None) -> None:
        self.examined += 1
        if before is not None:
            self.examples += 1
            if len(self.pairs) < KEPT_LINES:
                self.pairs.append((line, before))


class Inspection:
    """Fed with the file's bytes in order. `others` are the fingerprints of a second file, with their lines."""

    def __init__(self, purpose: str, others: Mapping[int, int] | None = None) -> None:
        self.check = LineCheck(RequestRules() if purpose == "batch" else check_line, self._take)
        self._others = others
        self._longest = self._total = 0
        self._histogram: Counter[int] = Counter()
        self._duplicates, self._overlap = _Repeats(), _Repeats()
        self.fingerprints: dict[int, int] = {}

    def read(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            self.check.feed(piece)
            if self.check.given_up:
                break
        self.check.finish()

    def lengths(self) -> Lengths:
        examples = self.check.examples
        return Lengths(
            method="bytes/4",
            total=self._total,
            mean=round(self._total / examples, 1) if examples else 0.0,
            max=self._longest,
            histogram=[Bucket(up_to=1 << bits, examples=count) for bits, count in sorted(self._histogram.items())],
        )

    def duplicates(self) -> Duplicates:
        found = self._duplicates
        lines = [Duplicate(line=line, first_line=first) for line, first in found.pairs]
        return Duplicates(examples=found.examples, examined=found.examined, lines=lines)

    def overlap(self, file_id: str) -> Overlap:
        found = self._overlap
        lines = [Shared(line=line, compared_line=other) for line, other in found.pairs]
        return Overlap(file_id=file_id, examples=found.examples, examined=found.examined, lines=lines)

    def _take(self, number: int, value: dict[str, Any]) -> None:
        tokens = -(-text_bytes(value) // BYTES_PER_TOKEN)
        self._total += tokens
        self._longest = max(self._longest, tokens)
        self._histogram[(max(tokens, 1) - 1).bit_length()] += 1
        mark = fingerprint(value)
        if mark in self.fingerprints or len(self.fingerprints) < EXAMPLES:
            self._duplicates.count(number, self.fingerprints.get(mark))
            self.fingerprints.setdefault(mark, number)
        if self._others is not None:
            self._overlap.count(number, self._others.get(mark))


def fingerprint(value: dict[str, Any]) -> int:
    """The same for the same example however it is spelled: order of fields, spaces, escapes."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    return int.from_bytes(hashlib.blake2b(canonical, digest_size=8).digest())


def text_bytes(value: Any) -> int:
    """How long the strings in `value` are, without recursion: nesting is the file's choice."""
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            total += len(item.encode())
        elif isinstance(item, dict):
            waiting.extend(cast("dict[str, Any]", item).values())
        elif isinstance(item, list):
            waiting.extend(cast("list[Any]", item))
    return total
