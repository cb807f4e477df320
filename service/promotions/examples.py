"""Held-out examples: which lines of a file are asked, and what of each goes to a model and what is kept to judge by."""

import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, cast

import orjson

from service.contracts.store import ObjectStore
from service.files.stored import stored_lines

MOST = 200
"""Examples of one evaluation. Of a longer file the same ones are drawn each time, so that scores can be compared."""
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
TRAINING_ONLY = ("weight",)

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """`asked` is a request without its model; `answered` is the same with the example's own answer at its end.

    `item` is what templates see: the line, with the answer as `reference` unless it has a field of that name.
    """

    line: int
    item: Body
    path: str
    asked: Body
    answered: Body
    reference: str


async def sample(store: ObjectStore, key: str, count: int, seed: str) -> AsyncGenerator[Example]:
    """Up to MOST of the file's `count` examples, in its order."""
    chosen = set(random.Random(seed).sample(range(count), min(count, MOST)))
    place, last = 0, max(chosen, default=-1)
    async for number, text in stored_lines(store, key):
        if place in chosen:
            yield example(number, orjson.loads(text))
        place += 1
        if place > last:
            return


def example(line: int, value: Body) -> Example:
    """Of a line that was accepted when the file was uploaded."""
    if "prompt" in value:
        reference = value["completion"]
        asked = {"prompt": value["prompt"]}
        return Example(
            line, _item(value, reference), COMPLETION, asked, {"prompt": value["prompt"] + reference}, reference
        )
    if "messages" in value:
        context, answer = _last_answer(value["messages"])
        asked = {"messages": context, **_tools(value)}
    else:
        (answer,) = cast("list[Body]", value.get("preferred_output") or value.get("preferred_completion"))
        asked = {"messages": [_plain(each) for each in value["input"]["messages"]], **_tools(value["input"])}
    answered = {**asked, "messages": [*asked["messages"], _plain(answer)]}
    reference = text_of(answer)
    return Example(line, _item(value, reference), CHAT, asked, answered, reference)


def text_of(message: Body) -> str:
    """What a message says; of one that only calls tools, the calls."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in cast("list[Body]", content))
    if content:
        return cast("str", content)
    calls = cast("list[Body]", message.get("tool_calls") or [])
    told = [{"name": call["function"]["name"], "arguments": _arguments(call["function"])} for call in calls]
    return orjson.dumps(told, option=orjson.OPT_SORT_KEYS).decode() if told else ""


def _arguments(function: Body) -> Any:
    arguments = function.get("arguments")
    try:
        return orjson.loads(arguments) if isinstance(arguments, str) else arguments
    except orjson.JSONDecodeError:
        return arguments


def _last_answer(messages: list[Body]) -> tuple[list[Body], Body]:
    place = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
    return [_plain(each) for each in messages[:place]], messages[place]


def _plain(message: Body) -> Body:
    return {name: value for name, value in message.items() if name not in TRAINING_ONLY}


def _tools(value: Body) -> Body:
    tools = value.get("tools") or [{"type": "function", "function": each} for each in value.get("functions") or ()]
    return {"tools": tools} if tools else {}


def _item(value: Body, reference: str) -> Body:
    return {"reference": reference, **value}
