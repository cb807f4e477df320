"""Calls of the table in `compatibility`, made with both of the package's clients and looked at alike."""

import inspect
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.service.contract.compatibility import ABSENT, CALLS, World

PACKAGE_LACKS = {"fine_tuning.jobs.pause", "completions.create (stream)"}
"""OpenAI's own answers have values that the package's types lack, so strict validation would refuse those too:
the statuses `paused` and `pausing`, and null for the finish reason of a chunk that is not the last."""


def call(options: dict[str, Any], world: World, name: str, strict: bool | None = None) -> None:
    """Fails where the method does, or where its answer is not what the package's types say."""
    strict = name not in PACKAGE_LACKS if strict is None else strict
    with openai.OpenAI(**options, _strict_response_validation=strict) as client:
        answer = CALLS[name](client, world)
        if hasattr(answer, "__enter__") and name.endswith(".stream"):
            with answer as opened:
                assert list(opened)
                assert opened.get_final_completion().choices[0].message.content
        elif isinstance(answer, openai.Stream):
            assert list(answer)
        else:
            _check(name, answer)


async def call_async(options: dict[str, Any], world: World, name: str, strict: bool | None = None) -> None:
    strict = name not in PACKAGE_LACKS if strict is None else strict
    async with openai.AsyncOpenAI(**options, _strict_response_validation=strict) as client:
        answer = CALLS[name](client, world)
        if hasattr(answer, "__aenter__") and name.endswith(".stream"):
            async with answer as opened:
                assert [event async for event in opened]
                assert (await opened.get_final_completion()).choices[0].message.content
            return
        answer = await answer if inspect.isawaitable(answer) else answer
        if isinstance(answer, AsyncIterator | openai.AsyncStream):
            assert [event async for event in answer]
        else:
            _check(name, answer)


def refuse(options: dict[str, Any], world: World, name: str) -> None:
    """Fails where a method that is not there is refused in another way than OpenAI's clients expect."""
    with openai.OpenAI(**options) as client, pytest.raises(openai.APIStatusError) as refused:
        ABSENT[name][1](client, world)
    _check_refusal(refused.value)


async def refuse_async(options: dict[str, Any], world: World, name: str) -> None:
    async with openai.AsyncOpenAI(**options) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await ABSENT[name][1](client, world)
    _check_refusal(refused.value)


def _check(name: str, answer: Any) -> None:
    if name == "webhooks.verify_signature":
        assert answer is None
    elif name == "files.retrieve_content":
        assert "messages" in answer
    elif name == "files.content":
        assert b"messages" in answer.read()
    else:
        assert isinstance(answer, openai.BaseModel)
        if name != "webhooks.unwrap":
            assert answer._request_id
        assert getattr(answer, "data", True), "a list holds what the world has"


def _check_refusal(error: openai.APIStatusError) -> None:
    assert error.status_code in (404, 405)
    assert error.code in ("unknown_url", "method_not_allowed")
    assert error.request_id
