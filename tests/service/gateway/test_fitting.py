"""Prompts that cannot fit are refused at the gateway; any that might is the replica's to count."""

from typing import Any

import httpx2
import orjson
import pytest

from service.contracts.base_model import BaseModelInfo
from service.errors import InvalidRequest
from service.gateway import fields
from service.gateway.fitting import check_fits
from service.gateway.request import parse
from service.gateway.responses import parse_response
from tests.service.gateway.conftest import BASE
from tests.service.gateway.upstream import Upstream

CONTEXT, LONGEST = 100, 8
SPACE = CONTEXT * LONGEST
TOKENIZED = BaseModelInfo(
    name="b", source="b", fingerprint="f", chat_template_sha256=None, architecture="A", hidden_size=1,
    context_length=CONTEXT, longest_token=LONGEST,
)  # fmt: skip


def fits(body: dict[str, Any], base: BaseModelInfo = TOKENIZED) -> bool:
    raw = orjson.dumps({"model": "m", **body})
    if "input" in body:
        request = parse_response(raw)
    else:
        request = parse(raw, fields.COMPLETION if "prompt" in body else fields.CHAT)
    try:
        check_fits(request, base)
    except InvalidRequest as refused:
        return (refused.code, refused.param) != ("context_length_exceeded", next(iter(body)))
    return True


def user(content: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": "s"}, {"role": role, "content": content}]}


@pytest.mark.parametrize(
    ("body", "fitting"),
    [
        ({"prompt": [7] * CONTEXT}, True),
        ({"prompt": [7] * (CONTEXT + 1)}, False),
        ({"prompt": [[7], [7] * (CONTEXT + 1)]}, False),
        ({"prompt": [[7] * CONTEXT] * 3}, True),
        ({"prompt": "é" * SPACE}, True),
        ({"prompt": "x" * (SPACE + 1)}, False),
        ({"prompt": ["x" * SPACE] * 2}, True),
        ({"prompt": ["x", "x" * (SPACE + 1)]}, False),
        ({"prompt": "x" * (SPACE + 1), "truncate_prompt_tokens": 10}, True),
        ({"input": "x" * SPACE}, True),
        ({"input": "x" * (SPACE + 1)}, False),
        (user("x" * SPACE), True),
        (user("x" * (SPACE + 1)), False),
        (user([{"type": "text", "text": "x" * SPACE}, {"type": "text", "text": "y"}]), False),
        (user([{"type": "text", "text": "x" * SPACE}]), True),
        (user("x" * (SPACE + 1), role="assistant"), True),
        ({"messages": [{"role": "user", "content": None}, {"role": "user"}], "stop": "x" * SPACE}, True),
    ],
)
def test_what_cannot_fit_is_refused_and_nothing_that_might(body: dict[str, Any], fitting: bool) -> None:
    assert fits(body) == fitting


def test_where_the_longest_token_is_not_known_text_is_never_too_long() -> None:
    unknown = TOKENIZED.model_copy(update={"longest_token": None})
    assert fits({"prompt": "x" * 10**6}, unknown)
    assert not fits({"prompt": [7] * (CONTEXT + 1)}, unknown)


def test_no_replica_is_asked_about_it(upstream: Upstream, http: httpx2.Client) -> None:
    answer = http.post("/completions", json={"model": BASE, "prompt": [7] * 1025})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "prompt")
    assert "maximum context length is 1024 tokens" in error["message"]
    assert upstream.bodies == []
