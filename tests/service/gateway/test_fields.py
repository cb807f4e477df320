"""The field lists against vLLM's own request classes, and what a request may say in the fields that pass."""

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from openai.types import chat, completion_create_params, embedding_create_params
from openai.types.responses import response_create_params

from service.errors import InvalidRequest
from service.gateway import fields
from service.gateway.request import parse


def vllm_fields(module: str, name: str) -> set[str]:
    """The fields of one of vLLM's classes, read from its source: importing it takes seconds."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    source = Path(found.submodule_search_locations[0], "entrypoints/openai", module, "protocol.py").read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            members = [member for member in node.body if isinstance(member, ast.AnnAssign)]
            names = {member.target.id for member in members if isinstance(member.target, ast.Name)}
            # What begins with an underscore is the class's own.
            return {name for name in names if not name.startswith("_")}
    raise AssertionError(f"vLLM has no {name}")


@pytest.mark.parametrize(
    ("module", "name", "allowed"),
    [("chat_completion", "ChatCompletionRequest", fields.CHAT), ("completion", "CompletionRequest", fields.COMPLETION)],
)
def test_every_field_of_vllm_was_decided_on(module: str, name: str, allowed: frozenset[str]) -> None:
    theirs = vllm_fields(module, name)
    assert allowed <= theirs, "fields that vLLM no longer has"
    assert theirs <= allowed | fields.REFUSED | fields.IGNORED, "fields that nobody decided on"
    assert not allowed & (fields.REFUSED | fields.IGNORED)


@pytest.mark.parametrize("field", [*sorted(fields.REFUSED), "lora_request", "lora_path", "logits_processors", "x"])
@pytest.mark.parametrize("allowed", [fields.CHAT, fields.COMPLETION])
def test_what_is_not_listed_is_refused_by_name(field: str, allowed: frozenset[str]) -> None:
    with pytest.raises(InvalidRequest, match=f"Unrecognized request argument supplied: {field}") as caught:
        parsed(allowed, **{field: "x"})
    assert caught.value.param == field


def test_every_field_of_vllms_responses_was_decided_on() -> None:
    theirs = vllm_fields("responses", "ResponsesRequest")
    assert fields.RESPONSE - {"stream_options"} <= theirs, "fields that vLLM no longer has"
    decided = fields.RESPONSE | fields.REFUSED | fields.RESPONSE_REFUSED | fields.IGNORED | fields.STATEFUL
    assert theirs <= decided, "fields that nobody decided on"
    assert not fields.RESPONSE & (fields.REFUSED | fields.RESPONSE_REFUSED | fields.STATEFUL)


@pytest.mark.parametrize(
    ("parameters", "allowed"),
    [
        (chat.completion_create_params.CompletionCreateParamsStreaming, fields.CHAT),
        (completion_create_params.CompletionCreateParamsStreaming, fields.COMPLETION),
        (response_create_params.ResponseCreateParamsStreaming, fields.RESPONSE | fields.STATEFUL),
        (embedding_create_params.EmbeddingCreateParams, fields.EMBEDDING),
    ],
)
def test_every_parameter_of_openais_sdk_passes_is_ignored_or_is_refused_as_unsupported(
    parameters: Any, allowed: frozenset[str]
) -> None:
    theirs = set(get_type_hints(parameters))
    assert theirs <= allowed | fields.IGNORED | fields.UNSUPPORTED


@pytest.mark.parametrize("field", sorted(fields.UNSUPPORTED))
def test_what_no_model_here_can_do_is_refused_in_other_words_than_a_typing_error(field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(fields.CHAT, **{field: "x"})
    assert (caught.value.param, caught.value.code) == (field, "unsupported_parameter")
    assert "modalities" not in parsed(messages=[], modalities=["text"]).fields


def test_the_best_of_as_many_as_are_wanted_are_all_of_them() -> None:
    for wanted in ({"best_of": 1}, {"n": 3, "best_of": 3}):
        assert "best_of" not in parsed(fields.COMPLETION, prompt="x", **wanted).fields
    with pytest.raises(InvalidRequest) as caught:
        parsed(fields.COMPLETION, prompt="x", best_of=2)
    assert caught.value.param == "best_of"


def parsed(allowed: frozenset[str] = fields.CHAT, **body: Any) -> Any:
    return parse(json.dumps({"model": "m", **body}).encode(), allowed)


def test_what_is_sent_to_vllm() -> None:
    request = parsed(messages=[], top_k=None, n=2, stream=True, stream_options={"include_usage": True}, user="u")
    assert json.loads(request.upstream("adapter", "salt")) == {
        "model": "adapter",
        "messages": [],
        "n": 2,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "cache_salt": "salt",
    }
    assert "stream_options" not in json.loads(parsed(messages=[]).upstream("adapter", "salt"))


PARTS: list[Any] = [
    [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}],
    [{"type": "prompt_embeds", "data": "AAAA"}],
    [{"type": "text", "text": "a", "image_url": {"url": "http://localhost/"}}],
    [{"type": "text", "text": "a", "uuid": "u"}],
    [{"image_url": {"url": "http://localhost/"}}],
    [{"type": ["text"], "text": "a"}],
    [7],
    {"type": "text", "text": "a"},
    7,
]


@pytest.mark.parametrize("content", PARTS)
def test_messages_hold_text_and_nothing_to_fetch_or_load(content: Any) -> None:
    with pytest.raises(InvalidRequest):
        parsed(messages=[{"role": "user", "content": content}])


@pytest.mark.parametrize("content", ["a", None, [], ["a"], [{"type": "text", "text": "a"}], [{"text": "a"}]])
def test_text_passes_in_every_form(content: Any) -> None:
    messages = [{"role": "user", "content": content}]
    assert parsed(messages=messages).fields["messages"] == messages


@pytest.mark.parametrize(
    "body",
    [
        {"n": 0}, {"n": 129}, {"n": "2"}, {"n": True}, {"n": 2.0},
        {"stream": "yes"}, {"stream_options": {"include_usage": True}}, {"stream": True, "stream_options": []},
        {"stream": True, "stream_options": {"other": 1}},
        {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, {"chat_template_kwargs": {"enable_thinking": "no"}},
        {"messages": "x"}, {"messages": ["x"]},
    ],
)  # fmt: skip
def test_values_that_cost_too_much_or_could_do_harm_are_refused(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        parsed(**body)


def test_sequences_are_counted_and_limited() -> None:
    def counts(**body: Any) -> tuple[int, int]:
        request = parsed(fields.COMPLETION, **body)
        return request.choices, request.prompts

    assert counts(prompt="a") == (1, 1)
    assert counts(prompt=[1, 2, 3]) == (1, 1)
    assert counts(prompt=["a", "b"], n=3) == (3, 2)
    assert counts(prompt=[[1], [2]]) == (1, 2)
    assert counts(prompt=[]) == (1, 1)
    assert counts(prompt=["a"] * 8, n=128) == (128, 8)
    with pytest.raises(InvalidRequest):
        counts(prompt=["a"] * 9, n=128)


def test_thinking_may_be_switched() -> None:
    switches = {"enable_thinking": False}
    assert parsed(chat_template_kwargs=switches).fields["chat_template_kwargs"] == switches
