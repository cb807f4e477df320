"""Checks a training file piece by piece and numbers its bad lines. What a good line is, is said in `lines`."""

from service.errors import InvalidRequest
from service.files.lines import Form, InvalidLine, Problem, check_line

MAX_PROBLEMS = 20
NAMED_PROBLEMS = 3
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class DatasetCheck:
    """Fed with the file's bytes in order. Holds one unfinished line and MAX_PROBLEMS problems, whatever it is fed."""

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._rest = b""
        self._overlong = False
        self._line = 0
        self._blank: int | None = None
        self._form: Form | None = None
        self.examples = 0
        self.problems: list[Problem] = []

    @property
    def given_up(self) -> bool:
        """More pieces would only bring more problems."""
        return len(self.problems) >= MAX_PROBLEMS

    def feed(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._end_line(line)
        if len(self._rest) > self._max_line_bytes:
            self._overlong, self._rest = True, b""

    def finish(self) -> None:
        if self._rest or self._overlong:
            self._end_line(self._rest)
        if not self.examples and not self.problems:
            self._report(1, "empty_file", "the file holds no examples")

    def _end_line(self, line: bytes) -> None:
        self._line += 1
        overlong, self._overlong = self._overlong or len(line) > self._max_line_bytes, False
        if overlong:
            self._report(self._line, "line_too_long", f"is longer than {self._max_line_bytes} bytes")
            return
        if self._line == 1 and line.startswith(BYTE_ORDER_MARK):
            self._report(1, "byte_order_mark", "begins with a byte order mark; save the file as UTF-8 without it")
            line = line.removeprefix(BYTE_ORDER_MARK)
        self._take(line.strip(b" \t\r"))

    def _take(self, line: bytes) -> None:
        if not line:
            self._blank = self._blank or self._line
            return
        if self._blank is not None:
            # Known to be in the middle only now: empty lines at the end of a file are usual and do no harm.
            self._report(self._blank, "blank_line", "is blank")
            self._blank = None
        try:
            form = check_line(line)
        except InvalidLine as error:
            self._report(self._line, error.code, error.message)
            return
        self._form = self._form or form
        if form != self._form:
            self._report(self._line, "mixed_forms", f"is a {form} example, the lines before are {self._form} examples")
            return
        self.examples += 1

    def _report(self, line: int, code: str, message: str) -> None:
        if not self.given_up:
            self.problems.append(Problem(line, code, message))


def refusal(check: DatasetCheck) -> InvalidRequest:
    """The error that tells a caller which lines to mend."""
    named = "; ".join(f"line {problem.line}: {problem.message}" for problem in check.problems[:NAMED_PROBLEMS])
    more = len(check.problems) - NAMED_PROBLEMS
    tail = f"; and {more}{' or more' if check.given_up else ''} further problems" if more > 0 else ""
    return InvalidRequest(
        f"The file cannot be used for fine-tuning: {named}{tail}.",
        code="invalid_training_file",
        param="file",
        extra={"problems": [vars(problem) for problem in check.problems]},
    )
