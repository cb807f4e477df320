"""Each group of parameters that OpenAI's clients know, against vLLM itself: tools, formats, probabilities, choices."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai import OpenAI

from deploy.local.tiny_base.tasks import Request, request
from tests.e2e.stack import Stack
from tests.e2e.training import tune, wait_for_job

pytestmark = pytest.mark.stack

SHIP: Any = {
    "type": "function",
    "function": {
        "name": "ship",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}, "city": {"type": "string"}}},
    },
}
CANCEL: Any = {
    "type": "function",
    "function": {
        "name": "cancel",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"reason": {"type": "string", "enum": ["late", "broken"]}},
            "required": ["reason"],
            "additionalProperties": False,
        },
    },
}
ASKED: Any = [{"role": "user", "content": "order 4821 from Mira Kato ships to Lund"}]


def called(asked: Request) -> dict[str, Any]:
    """One training example that answers with a call."""
    arguments = json.dumps({"name": asked.name, "city": asked.town})
    call = {"id": "call_1", "type": "function", "function": {"name": "ship", "arguments": arguments}}
    return {
        "messages": [{"role": "user", "content": asked.text}, {"role": "assistant", "tool_calls": [call]}],
        "tools": [SHIP],
    }


@pytest.fixture(scope="module")
def client(stack: Stack) -> OpenAI:
    return OpenAI(base_url=stack.base_url, api_key=stack.project("e2e-parameters"), max_retries=0)


@pytest.fixture(scope="module")
def caller(client: OpenAI) -> str:
    """A model that was taught to call."""
    dice = random.Random(1)
    job = tune(client, [called(request(dice)) for _ in range(120)], suffix="caller")
    return wait_for_job(client, job.id).fine_tuned_model or ""


def test_a_model_that_was_taught_to_call_calls_by_itself(client: OpenAI, caller: str) -> None:
    dice = random.Random(2)

    def right(asked: Request) -> bool:
        answer = client.chat.completions.create(
            model=caller,
            messages=[{"role": "user", "content": asked.text}],
            tools=[SHIP],
            temperature=0,
            max_tokens=150,
        )
        (choice,) = answer.choices
        (call,) = choice.message.tool_calls or [None]
        if call is None or call.type != "function":
            return False
        assert (choice.finish_reason, call.function.name) == ("tool_calls", "ship")
        return json.loads(call.function.arguments) == {"name": asked.name, "city": asked.town}

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(right, [request(dice) for _ in range(8)])) >= 5


def test_calls_arrive_in_a_stream_too_and_their_results_are_taken(client: OpenAI, caller: str) -> None:
    with client.chat.completions.stream(model=caller, messages=ASKED, tools=[SHIP], temperature=0) as stream:
        streamed = stream.get_final_completion().choices[0]
    plain = client.chat.completions.create(model=caller, messages=ASKED, tools=[SHIP], temperature=0).choices[0]
    assert streamed.finish_reason == plain.finish_reason == "tool_calls"
    assert streamed.message.tool_calls is not None
    assert plain.message.tool_calls is not None
    (one,), (other,) = streamed.message.tool_calls, plain.message.tool_calls
    assert other.type == "function"
    assert json.loads(one.function.arguments) == json.loads(other.function.arguments)
    result: Any = {"role": "tool", "tool_call_id": one.id, "content": "shipped"}
    asked = [*ASKED, plain.message.to_dict(), result]
    answer = client.chat.completions.create(model=caller, messages=asked, tools=[SHIP], max_tokens=8)
    assert answer.usage is not None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "cancel"}}])
def test_a_call_can_be_forced(client: OpenAI, choice: Any, stream: bool) -> None:
    asked: Any = {"model": "weft-tiny", "messages": ASKED, "tool_choice": choice, "max_tokens": 200, "temperature": 0}
    tools: Any = [CANCEL] if choice == "required" else [SHIP, CANCEL]
    if stream:
        with client.chat.completions.stream(**asked, tools=tools) as streamed:
            message: Any = streamed.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(**asked, tools=tools).choices[0].message
    assert message.tool_calls
    assert {call.function.name for call in message.tool_calls} == {"cancel"}
    for call in message.tool_calls:
        assert json.loads(call.function.arguments)["reason"] in {"late", "broken"}


def test_no_call_where_none_is_wanted(client: OpenAI, caller: str) -> None:
    message = client.chat.completions.create(
        model=caller, messages=ASKED, tools=[SHIP], tool_choice="none", temperature=0, max_tokens=40
    ).choices[0].message  # fmt: skip
    assert not message.tool_calls


def test_responses_call_too(client: OpenAI, caller: str) -> None:
    tool: Any = {"type": "function", **SHIP["function"], "strict": False}
    text = "order 4821 from Mira Kato ships to Lund"
    answer = client.responses.create(model=caller, input=text, tools=[tool], temperature=0, store=False)
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "ship"
    assert set(json.loads(call.arguments)) == {"name", "city"}


def test_json_schema_is_obeyed(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Lund", "Oslo"]}, "urgent": {"type": "boolean"}},
        "required": ["city", "urgent"],
        "additionalProperties": False,
    }
    shape: Any = {"type": "json_schema", "json_schema": {"name": "order", "schema": schema, "strict": True}}
    for seed in range(4):
        answer = client.chat.completions.create(
            model="weft-tiny", messages=ASKED, response_format=shape, seed=seed, temperature=1.5, max_tokens=200
        )
        said = json.loads(answer.choices[0].message.content or "")
        assert said["city"] in {"Lund", "Oslo"}
        assert said["urgent"] in {True, False}


def test_json_object_is_json(client: OpenAI) -> None:
    shape: Any = {"type": "json_object"}
    answer = client.chat.completions.create(
        model="weft-tiny", messages=ASKED, response_format=shape, temperature=0, max_tokens=400
    )
    (choice,) = answer.choices
    said = choice.message.content or ""
    assert said.lstrip().startswith("{")
    assert choice.finish_reason == "length" or isinstance(json.loads(said), dict)


def test_probabilities_of_what_was_said_and_of_what_was_not(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="weft-tiny", messages=ASKED, logprobs=True, top_logprobs=3, temperature=0, max_tokens=5
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert answer.usage is not None
    assert len(logprobs.content) == answer.usage.completion_tokens
    for token in logprobs.content:
        assert token.logprob <= 0
        assert token.top_logprobs[0].token == token.token, "the likeliest, at temperature 0"
        assert len(token.top_logprobs) == 3
    older = client.completions.create(model="weft-tiny", prompt="order", logprobs=2, max_tokens=3, temperature=0)
    assert older.choices[0].logprobs is not None
    assert all(len(each) >= 2 for each in older.choices[0].logprobs.top_logprobs or [])


def test_several_choices_of_one_seed(client: OpenAI) -> None:
    def choices(seed: int) -> list[str]:
        answer = client.chat.completions.create(
            model="weft-tiny", messages=ASKED, n=3, seed=seed, temperature=1.5, max_tokens=12
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content or "" for choice in answer.choices]

    first = choices(7)
    assert choices(7) == first
    assert choices(8) != first
    assert len(set(first)) > 1


def test_stop_ends_the_answer_before_it(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="weft-tiny", messages=ASKED, temperature=0, max_tokens=40)
    said = whole.choices[0].message.content or ""
    stop = said[1:3]
    assert stop
    cut = client.chat.completions.create(
        model="weft-tiny", messages=ASKED, temperature=0, max_tokens=40, stop=[stop, "never said"]
    ).choices[0]  # fmt: skip
    assert (cut.message.content, cut.finish_reason) == (said[: said.index(stop)], "stop")


def test_usage_comes_last_in_a_stream_that_asks_for_it(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="weft-tiny", messages=ASKED, n=2, max_tokens=4, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert (last.choices, last.usage is not None) == ([], True)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_what_cannot_be_is_the_callers_mistake(client: OpenAI) -> None:
    unknown: Any = {"type": "function", "function": {"name": "unknown"}}
    bad: list[dict[str, Any]] = [
        {"tools": [SHIP], "tool_choice": unknown},
        {"tool_choice": "required"},
        {"response_format": {"type": "json_schema"}},
        {"top_logprobs": 3},
        {"n": 0},
    ]
    for fields in bad:
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="weft-tiny", messages=ASKED, max_tokens=4, **fields)
