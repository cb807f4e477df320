"""Keeps out of vLLM's log what tenants send: a chat template's refusal quotes its message, an error quotes its input.

What is logged stays, with its place in the code; values in it that may come from a request are left out, and so is a
message that is no literal of the code. Only loggers that handle requests are concerned, so that whatever stops an
engine is told in full. It works where records are made: vLLM configures its handlers anew after plugins are loaded.
"""

import logging
import re
import sys
import traceback
from types import FrameType
from typing import Any

CONTENT = (
    "vllm.entrypoints.generate.",
    "vllm.entrypoints.openai.",
    "vllm.entrypoints.serve.",
    "vllm.parser.",
    "vllm.reasoning.",
    "vllm.renderers.",
    "vllm.tool_parsers.",
    "vllm.v1.structured_output",
)
"""Loggers, by how their names begin."""
OURS = re.compile(r"[a-z]*-?req_[A-Za-z0-9_-]{1,80}")
"""A request's id, as the gateway makes it and vLLM extends it."""
LEFT_OUT = "…"


class Discretion:
    """A factory of log records over another one."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, *fields: Any, **more: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._inner(*fields, **more)
        if record.name.startswith(CONTENT):
            _conceal(record)
        return record


def install() -> None:
    """May be repeated, and holds for processes forked later."""
    factory = logging.getLogRecordFactory()
    if not isinstance(factory, Discretion):
        logging.setLogRecordFactory(Discretion(factory))


def _conceal(record: logging.LogRecord) -> None:
    if not _is_literal(record):
        record.msg, record.args = LEFT_OUT, ()
    elif isinstance(record.args, tuple):
        record.args = tuple(_shown(value) for value in record.args)
    else:
        record.args = ()
    if record.exc_info and record.exc_info[0]:
        kind, _, trace = record.exc_info
        record.exc_text = "".join([*traceback.format_tb(trace), kind.__name__ if kind else ""])
        record.exc_info = None


def _is_literal(record: logging.LogRecord) -> bool:
    """Whether the message stands in the code that logs it: one put together there may quote a request."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if (code.co_filename, code.co_name) == (record.pathname, record.funcName):
            return record.msg in code.co_consts
        frame = frame.f_back
    return False


def _shown(value: Any) -> Any:
    if value is None or isinstance(value, int | float | type) or (isinstance(value, str) and OURS.fullmatch(value)):
        return value
    return LEFT_OUT
