"""Checks a file of lines piece by piece and numbers the bad ones. What a good line is, `lines` and `requests` say."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from service.errors import InvalidRequest
from service.files.fixes import fix_of
from service.files.lines import InvalidLine, Line, Problem, check_line

MAX_PROBLEMS = 20
NAMED_PROBLEMS = 3
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SPACE = b" \t\r\n"
HOPELESS_LINE = 16
"""A line so many times as long as it may be ends the check: this is no file of lines."""
HOPELESS_BLANK = 100_000
"""And so do so many empty lines."""


class Found(Protocol):
    """What a check has found."""

    @property
    def problems(self) -> Sequence[Problem]: ...
    @property
    def given_up(self) -> bool: ...


class DatasetCheck:
    """Fed with the file's bytes in order. Holds one unfinished line and `kept` problems, whatever it is fed.

    `take` is told each good line with its number. The check is `given_up` after `patience` problems: what follows is
    not looked at.
    """

    def __init__(
        self,
        max_line_bytes: int,
        check: Callable[[bytes], Line] = check_line,
        take: Callable[[int, Line], None] | None = None,
        *,
        kept: int = MAX_PROBLEMS,
        patience: int = MAX_PROBLEMS,
    ) -> None:
        self._max_line_bytes = max_line_bytes
        self._check, self._take_good = check, take
        self._kept, self._patience = kept, patience
        self._rest = b""
        self._overlong = 0
        self._hopeless = False
        self._blank: int | None = None
        self.line = 0
        self.examples = 0
        self.example_format: str | None = None
        self.problems: list[Problem] = []
        self.counts: Counter[str] = Counter()

    @property
    def given_up(self) -> bool:
        """More pieces would only bring more problems."""
        return self._hopeless or self.counts.total() >= self._patience

    def feed(self, piece: bytes) -> None:
        if self.given_up:
            return
        if not self._rest and not self._overlong and not piece.strip(SPACE):
            self._skip(piece)
            return
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._end_line(line)
        if len(self._rest) > self._max_line_bytes:
            self._overlong += len(self._rest)
            self._rest = b""
            if self._overlong > HOPELESS_LINE * self._max_line_bytes:
                self._end_line(b"")
                self._hopeless = True

    def finish(self) -> None:
        if self._rest or self._overlong:
            self._end_line(self._rest)
        if not self.examples and not self.counts:
            self._report(1, "empty_file", "the file holds no examples")

    def _skip(self, blank: bytes) -> None:
        """Many empty lines at once: a file can be made of them, and each one by itself would cost."""
        if b"\n" not in blank:
            return
        self._blank = self._blank or self.line + 1
        self.line += blank.count(b"\n")
        if self.line - self._blank > HOPELESS_BLANK:
            self._report(self._blank, "blank_line", f"is blank, and so are {HOPELESS_BLANK} lines after it")
            self._hopeless = True

    def _end_line(self, line: bytes) -> None:
        self.line += 1
        overlong, self._overlong = self._overlong or len(line) > self._max_line_bytes, 0
        if overlong:
            self._report(self.line, "line_too_long", f"is longer than {self._max_line_bytes} bytes")
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
            # Known to be in the middle only now: empty lines at the end of a file are usual and do no harm.
            self._report(self._blank, "blank_line", "is blank")
            self._blank = None
        try:
            found = self._check(line)
        except InvalidLine as error:
            self._report(self.line, error.code, error.message)
            return
        wanted = self.example_format = self.example_format or found.format
        if found.format != wanted:
            message = f"is a {found.format} example, the lines before are {wanted} examples"
            self._report(self.line, "mixed_formats", message)
            return
        self.examples += 1
        if self._take_good is not None:
            self._take_good(self.line, found)

    def _report(self, line: int, code: str, message: str) -> None:
        if self.given_up:
            return
        self.counts[code] += 1
        if len(self.problems) < self._kept:
            self.problems.append(Problem(line, code, message))


def refusal(check: Found) -> InvalidRequest:
    """The error that tells a caller which lines to mend."""
    return InvalidRequest(
        f"The file cannot be used for fine-tuning: {summary(check)}.",
        code="invalid_training_file",
        param="file",
        extra={"problems": [described(problem) for problem in check.problems]},
    )


def summary(check: Found) -> str:
    """The first problems and how many there are, in one sentence."""
    named = "; ".join(f"line {problem.line}: {problem.message}" for problem in check.problems[:NAMED_PROBLEMS])
    more = len(check.problems) - NAMED_PROBLEMS
    tail = f"; and {more}{' or more' if check.given_up else ''} further problems" if more > 0 else ""
    return named + tail


def described(problem: Problem) -> dict[str, Any]:
    return {**vars(problem), "fix": fix_of(problem.code)}
