"""Keeps out of vLLM's log what tenants send: a chat template's refusal quotes its message, an error quotes its input.

What is logged stays, with its place in the code; values in it that may come from a request are left out. Only loggers
that handle requests are concerned, so that whatever stops an engine is told in full.
"""

import logging
import re
import traceback
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


class Discretion(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith(CONTENT):
            if isinstance(record.args, tuple):
                record.args = tuple(_shown(value) for value in record.args)
            else:
                record.args = ()
            if record.exc_info and record.exc_info[0]:
                kind, _, trace = record.exc_info
                name = kind.__name__ if kind else ""
                record.exc_text = "".join([*traceback.format_tb(trace), name])
                record.exc_info = None
        return True


def install() -> None:
    """May be repeated, and holds for processes forked later."""
    for handler in logging.getLogger("vllm").handlers:
        if not any(isinstance(each, Discretion) for each in handler.filters):
            handler.addFilter(Discretion())


def _shown(value: Any) -> Any:
    if value is None or isinstance(value, int | float | type) or (isinstance(value, str) and OURS.fullmatch(value)):
        return value
    return "…"
