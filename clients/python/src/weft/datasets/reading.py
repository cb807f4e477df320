"""One line of a file as a JSON object, as strictly as the service reads it.

The standard library's parser lets through what is not JSON (NaN, numbers beyond a double, halves of surrogate pairs);
the service does not, and neither does this.
"""

import json
import math
import re
from typing import Any, cast

MAX_DEPTH = 1024
ESCAPE = re.compile(
    rb"\\(?:u(?:[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>[dD][89a-fA-F][0-9a-fA-F]{2})|)|.)"
)
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?')
BRACKET = re.compile(rb"[\[{\]}]")


class InvalidLine(Exception):
    """Why a line cannot be used."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class _NotJson(ValueError):
    def __init__(self, column: int) -> None:
        super().__init__("not JSON")
        self.column = column


def parsed(line: bytes) -> dict[str, Any]:
    """The object that a line holds. Raises InvalidLine."""
    if b"\0" in line:
        raise InvalidLine("nul_character", "contains a NUL byte; save the file as UTF-8 text")
    try:
        value = _loaded(line)
    except UnicodeDecodeError as bad:
        message = f"is not valid UTF-8 (byte {bad.start + 1}); save the file as UTF-8"
        raise InvalidLine("invalid_utf8", message) from None
    except _NotJson as error:
        raise InvalidLine("invalid_json", f"is not valid JSON (column {error.column})") from None
    if not isinstance(value, dict):
        raise InvalidLine("not_an_object", "is not a JSON object")
    if b"\\u0000" in line and _holds_nul(value):
        raise InvalidLine("nul_character", "contains the NUL character \\u0000; remove it")
    return cast("dict[str, Any]", value)


def is_object(text: str) -> bool:
    """Whether `text` is a JSON object."""
    try:
        return isinstance(_loaded(text.encode()), dict)
    except (_NotJson, UnicodeError):
        return False


def _loaded(line: bytes) -> Any:
    text = line.decode()
    try:
        value = json.loads(text, parse_int=_integer, parse_float=_number, parse_constant=_refused)
    except json.JSONDecodeError as error:
        raise _NotJson(error.colno) from None
    except RecursionError:
        raise _NotJson(1) from None
    half = next((found for found in ESCAPE.finditer(line) if found["half"]), None) if b"\\u" in line else None
    if half is not None:
        raise _NotJson(half.start() + 1)
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(line) > MAX_DEPTH:
        raise _NotJson(1)
    return value


def _integer(digits: str) -> int | float:
    """Beyond 64 bits a number is a double, as in most parsers."""
    if len(digits) > 20:
        return _number(digits)
    number = int(digits)
    return number if -(2**63) <= number < 2**64 else float(number)


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _NotJson(1)
    return number


def _refused(_: str) -> float:
    raise _NotJson(1)


def _depth(line: bytes) -> int:
    deepest = depth = 0
    for bracket in BRACKET.findall(STRING.sub(b"", line)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _holds_nul(value: Any) -> bool:
    """Looks without recursion: nesting is the file's choice."""
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if "\0" in item:
                return True
        elif isinstance(item, dict):
            waiting.extend(cast("dict[str, Any]", item).keys())
            waiting.extend(cast("dict[str, Any]", item).values())
        elif isinstance(item, list):
            waiting.extend(cast("list[Any]", item))
    return False
