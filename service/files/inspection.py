"""Looks through a whole file once: its lines' problems, how long its examples are, which come twice or are elsewhere.

Memory is bounded whatever the file is: problems are counted by code and some are kept, lengths go into a histogram, and
of examples only short fingerprints are remembered, up to EXAMPLES of them. Nothing of what the file says is kept.
"""

import hashlib
import marshal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import orjson
from pydantic import BaseModel

from service.files.datasets import DatasetCheck
from service.files.lines import Line, Problem, check_line
from service.files.requests import RequestCheck

RULES = 1
"""Raised whenever the same file would be judged otherwise, so that no report of before is given."""
KEPT_PROBLEMS = 100
PATIENCE = 100_000
KEPT_LINES = 100
EXAMPLES = 1 << 20
BYTES_PER_TOKEN = 4
CHECKED_PURPOSES = frozenset({"fine-tune", "batch"})


class Lengths(BaseModel):
    """Examples by tokens. `histogram` maps an upper bound, a power of two, to the examples up to it.

    Those of `counted` examples were counted; of the others they are estimated by their bytes.
    """

    counted: int = 0
    total: int = 0
    longest: int = 0
    histogram: dict[int, int] = {}


class Pair(BaseModel):
    line: int
    same_as: int


class Repeats(BaseModel):
    """Examples that were seen before, `lines` being the first of them. Only the first `examined` were looked at."""

    examples: int = 0
    examined: int = 0
    lines: list[Pair] = []


class Findings(BaseModel):
    lines: int
    examples: int
    example_format: str | None
    given_up: bool
    problems: list[Problem]
    counts: dict[str, int]
    lengths: Lengths
    duplicates: Repeats
    overlap: Repeats | None


class Inspection:
    """Fed with the file's bytes in order. `others` are the fingerprints of a second file, with their lines.

    `count` gives the tokens of texts, or None once it counts no more.
    """

    def __init__(
        self,
        purpose: str,
        max_line_bytes: int,
        others: Mapping[int, int] | None = None,
        *,
        patience: int = PATIENCE,
        count: Callable[[Iterable[str]], int | None] | None = None,
    ) -> None:
        rules = RequestCheck() if purpose == "batch" else check_line
        self._check = DatasetCheck(max_line_bytes, rules, self._take, kept=KEPT_PROBLEMS, patience=patience)
        self._others = others
        self._count = count
        self._counted = self._counted_bytes = self._counted_tokens = 0
        self._longest = self._total = 0
        self._histogram: Counter[int] = Counter()
        self._duplicates = Repeats()
        self._overlap = Repeats()
        self.fingerprints: dict[int, int] = {}
        self.feed = self._check.feed

    @property
    def given_up(self) -> bool:
        return self._check.given_up

    def finish(self) -> Findings:
        check = self._check
        check.finish()
        histogram = {1 << bits: count for bits, count in sorted(self._histogram.items())}
        return Findings(
            lines=check.line,
            examples=check.examples,
            example_format=check.example_format,
            given_up=check.given_up,
            problems=check.problems,
            counts=dict(check.counts.most_common()),
            lengths=Lengths(counted=self._counted, total=self._total, longest=self._longest, histogram=histogram),
            duplicates=self._duplicates,
            overlap=None if self._others is None else self._overlap,
        )

    def _take(self, number: int, line: Line) -> None:
        tokens = self._tokens(line.value)
        self._total += tokens
        self._longest = max(self._longest, tokens)
        self._histogram[(max(tokens, 1) - 1).bit_length()] += 1
        mark = fingerprint(line.value)
        if mark in self.fingerprints or len(self.fingerprints) < EXAMPLES:
            _count(self._duplicates, number, self.fingerprints.get(mark))
            self.fingerprints.setdefault(mark, number)
        if self._others is not None:
            _count(self._overlap, number, self._others.get(mark))

    def _tokens(self, value: dict[str, Any]) -> int:
        size = text_bytes(value)
        counted = None if self._count is None else self._count(texts(value))
        if counted is not None:
            self._counted += 1
            self._counted_bytes += size
            self._counted_tokens += counted
            return counted
        if self._counted_tokens:
            return -(-size * self._counted_tokens // self._counted_bytes)
        return -(-size // BYTES_PER_TOKEN)


def fingerprint(value: dict[str, Any]) -> int:
    """The same for the same example however it is spelled: order of fields, spaces, escapes.

    By 64 bits two of a million examples are taken for the same once in 30 million files.
    """
    try:
        canonical = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        # It reads deeper than it writes. Of such lines the order of fields counts; version 2 has no back references.
        canonical = marshal.dumps(value, 2)
    return int.from_bytes(hashlib.blake2b(canonical, digest_size=8).digest())


def text_bytes(value: Any) -> int:
    """How long the strings in `value` are."""
    return sum(len(text.encode()) for text in texts(value))


def texts(value: Any) -> Iterator[str]:
    """The strings in `value`, without recursion: nesting is the sender's choice."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting.extend(cast("dict[str, Any]", item).values())
        elif isinstance(item, list):
            waiting.extend(cast("list[Any]", item))


def _count(repeats: Repeats, line: int, before: int | None) -> None:
    repeats.examined += 1
    if before is not None:
        repeats.examples += 1
        if len(repeats.lines) < KEPT_LINES:
            repeats.lines.append(Pair(line=line, same_as=before))
