"""Which tokens are trained: read back as text, so that every expectation is what a person would mark in the chat."""

import json

import pytest
from transformers import PreTrainedTokenizerBase

from service.contracts.job import Method
from tests.trainer.tiny import CHATML, REWRITING, tokenizer
from trainer.data.encode import Encoded, Encoder
from trainer.data.examples import InvalidExample, parse_line
from trainer.data.render import Rendered, Renderer, template_hash


def trained(example: dict, limit: int = 500, template: str | None = CHATML) -> list[str]:
    """The trained runs of text, in order."""
    return trained_rows(example, "supervised", limit, template)[0]


def trained_rows(example: dict, method: Method, limit: int = 500, template: str | None = CHATML) -> list[list[str]]:
    """The same for each row that the line becomes."""
    tok = tokenizer(template)
    renderer = Renderer(tok)
    rendered = [renderer.render(row) for row in parse_line(json.dumps(example).encode(), method)]
    return [runs_of(tok, encoded) for encoded in Encoder(tok).encode(rendered, limit)]


def runs_of(tok: PreTrainedTokenizerBase, encoded: Encoded) -> list[str]:
    runs: list[list[int]] = []
    previous = 0.0
    for token, weight in zip(encoded.input_ids.tolist(), encoded.weights.tolist(), strict=True):
        if weight and not previous:
            runs.append([])
        if weight:
            runs[-1].append(token)
        previous = weight
    return [str(tok.decode(run)) for run in runs]


def rendered_line(renderer: Renderer, example: dict) -> Rendered:
    (row,) = parse_line(json.dumps(example).encode(), "supervised")
    return renderer.render(row)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more: object) -> dict:
    return {"role": "assistant", "content": text, **more}


def test_answers_and_their_end_of_turn_are_trained_and_nothing_else() -> None:
    chat = {
        "messages": [
            {"role": "system", "content": "Be short."},
            user("a?"),
            assistant("A!"),
            user("b?"),
            assistant("B!"),
        ]
    }
    assert trained(chat) == ["A!<|im_end|>", "B!<|im_end|>"]


def test_weight_zero_takes_an_answer_out_and_weight_one_changes_nothing() -> None:
    chat = {"messages": [user("a?"), assistant("A!", weight=0), user("b?"), assistant("B!", weight=1)]}
    assert trained(chat) == ["B!<|im_end|>"]


def test_consecutive_answers_are_both_trained() -> None:
    assert trained({"messages": [user("a?"), assistant("A!"), assistant("B!")]}) == ["A!<|im_end|>", "B!<|im_end|>"]


def test_an_answer_that_opens_the_conversation_is_trained_without_its_header() -> None:
    assert trained({"messages": [assistant("Hello"), user("a?"), assistant("A!")]}) == [
        "Hello<|im_end|>",
        "A!<|im_end|>",
    ]


def test_tool_calls_are_trained_and_tools_and_results_are_not() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"up": 1}'}}
    chat = {
        "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
        "parallel_tool_calls": False,
        "messages": [
            user("a?"),
            assistant(None, tool_calls=[call]),
            {"role": "tool", "tool_call_id": "c1", "content": "found"},
            assistant("A!"),
        ],
    }
    expected = '<tool_call>{"arguments": {"up": 1}, "name": "look"}</tool_call><|im_end|>'
    first, second = trained(chat)
    assert json.loads(first.split(">", 1)[1].split("</")[0]) == json.loads(expected.split(">", 1)[1].split("</")[0])
    assert first.endswith("</tool_call><|im_end|>")
    assert second == "A!<|im_end|>"


def test_the_deprecated_functions_spelling_means_the_same_as_tools() -> None:
    function = {"name": "look", "parameters": {"type": "object"}}
    call = {"name": "look", "arguments": "{}"}
    old = {
        "functions": [function],
        "messages": [
            user("a?"),
            assistant(None, function_call=call),
            {"role": "function", "name": "look", "content": "f"},
        ],
    }
    new = {
        "tools": [{"type": "function", "function": function}],
        "messages": [
            user("a?"),
            assistant(None, tool_calls=[{"type": "function", "function": call}]),
            {"role": "tool", "name": "look", "content": "f"},
        ],
    }
    renderer = Renderer(tokenizer())
    texts = [rendered_line(renderer, chat).text for chat in (old, new)]
    assert texts[0] == texts[1]
    assert "look" in texts[0]


def test_a_developer_message_is_a_system_message_where_the_template_knows_no_developer() -> None:
    chat = {"messages": [{"role": "developer", "content": "Be short."}, user("a?"), assistant("A!")]}
    assert trained(chat) == ["A!<|im_end|>"]


def test_text_parts_become_text() -> None:
    chat = {"messages": [user("a?"), assistant([{"type": "text", "text": "A"}, {"type": "text", "text": "B"}])]}  # type: ignore[arg-type]
    assert trained(chat) == ["A\nB<|im_end|>"]


def test_line_breaks_and_characters_of_many_bytes_at_the_edges_stay_inside() -> None:
    assert trained({"messages": [user("a?"), assistant("\n\n  ß日本🙂 \n")]})[0].endswith("ß日本🙂 \n<|im_end|>")


def test_token_ids_are_those_of_the_whole_text() -> None:
    """Pieces tokenised one by one would miss the merges across message boundaries that serving makes."""
    tok = tokenizer()
    messages = [user("\n\nthe answer\n"), assistant("\n\nis in the house")]
    rendered = rendered_line(Renderer(tok), {"messages": messages})
    encoded = Encoder(tok).encode([rendered], 500)[0]
    served = tok.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert encoded.input_ids.tolist() == served


def test_prompt_and_completion_train_the_completion_and_its_end() -> None:
    assert trained({"prompt": "the answer", "completion": " is 7"}) == [" is 7<|im_end|>"]
    assert trained({"prompt": "", "completion": "the answer"})[0].endswith("<|im_end|>")


def preference(context: list[dict], better: dict, worse: dict, **more: object) -> dict:
    return {"input": {"messages": context, **more}, "preferred_output": [better], "non_preferred_output": [worse]}


def test_of_a_preference_each_answer_is_trained_in_a_row_of_its_own() -> None:
    context = [user("a?"), assistant("earlier", weight=1), user("b?")]
    rows = trained_rows(preference(context, assistant("better"), assistant("worse", weight=0)), "dpo")
    assert rows == [["better<|im_end|>"], ["worse<|im_end|>"]]


def test_the_completion_spelling_of_a_preference_means_the_same() -> None:
    line = {
        "input": {"messages": [user("a?")]},
        "preferred_completion": [assistant("better")],
        "non_preferred_completion": [assistant("worse")],
    }
    assert trained_rows(line, "dpo") == [["better<|im_end|>"], ["worse<|im_end|>"]]


def test_the_rows_of_a_preference_differ_in_the_answer_only_and_know_the_tools() -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    line = preference(
        [user("a?")],
        assistant(None, tool_calls=[call]),
        assistant("no"),
        tools=tools,
        parallel_tool_calls=True,
    )
    renderer = Renderer(tokenizer())
    better, worse = (renderer.render(row) for row in parse_line(json.dumps(line).encode(), "dpo"))
    start = better.spans[0][0]
    assert better.spans[0][0] == worse.spans[0][0]
    assert better.text[:start] == worse.text[:start]
    assert "look" in better.text[:start]
    assert better.text[start:].startswith("<tool_call>")


def test_a_template_that_rewrites_earlier_turns_does_not_hinder_a_preference() -> None:
    """What it would write for an earlier answer matters not: only the last one is trained."""
    line = preference([user("a?"), assistant("A!"), user("b?")], assistant("better"), assistant("worse"))
    assert [
        row[0].endswith(f"{text}<|im_end|>")
        for row, text in zip(trained_rows(line, "dpo", template=REWRITING), ("better", "worse"), strict=True)
    ] == [True, True]


@pytest.mark.parametrize(
    ("line", "method", "words"),
    [
        ({"messages": [user("a?"), assistant("A!")]}, "dpo", "supervised example; method 'dpo' needs 'input'"),
        ({"prompt": "a", "completion": "b"}, "dpo", "supervised example; method 'dpo' needs 'input'"),
        ({"text": "a"}, "dpo", "no preference example; method 'dpo' needs 'input'"),
        (preference([user("a?")], assistant("A"), assistant("B")), "supervised", "this job's is 'supervised'"),
        (preference([], assistant("A"), assistant("B")), "dpo", r"input\.messages: "),
        (preference([user("a?")], user("A"), assistant("B")), "dpo", "the preferred answer must be an assistant"),
        (preference([user("a?")], assistant("A"), assistant("")), "dpo", "the non-preferred answer is an assistant"),
        (preference([user("a?"), assistant("")], assistant("A"), assistant("B")), "dpo", r"messages\.1 is an"),
        ({"input": {"messages": [user("a?")]}, "preferred_output": [assistant("A")]}, "dpo", "non_preferred_output: "),
        (
            preference([user("a?")], assistant("A"), assistant("B")) | {"preferred_output": [assistant("A")] * 2},
            "dpo",
            "preferred_output: List should have at most 1 item",
        ),
    ],
)  # fmt: skip
def test_a_line_that_is_no_preference_or_should_be_none_is_told_so(line: dict, method: Method, words: str) -> None:
    with pytest.raises(InvalidExample, match=words):
        parse_line(json.dumps(line).encode(), method)


def test_truncation_keeps_the_front() -> None:
    tok = tokenizer()
    rendered = rendered_line(Renderer(tok), {"messages": [user("a?"), assistant("A" * 200)]})
    whole, cut = Encoder(tok).encode([rendered], 1000)[0], Encoder(tok).encode([rendered], 40)[0]
    assert cut.truncated
    assert not whole.truncated
    assert cut.input_ids.tolist() == whole.input_ids[:40].tolist()
    assert cut.weights.tolist() == whole.weights[:40].tolist()
    assert 0 < cut.trained_tokens < 40


def test_a_template_that_rewrites_earlier_turns_is_refused_and_its_single_turns_are_not() -> None:
    assert trained({"messages": [user("a?"), assistant("A!")]}, template=REWRITING) == ["<think></think>A!<|im_end|>"]
    with pytest.raises(InvalidExample, match=r"messages\.1 otherwise once more messages follow"):
        trained({"messages": [user("a?"), assistant("A!"), user("b?"), assistant("B!")]}, template=REWRITING)


def test_a_refusal_of_the_template_is_quoted_only_where_it_is_the_templates_own_words() -> None:
    strict = CHATML.replace("['system', 'user', 'assistant', 'tool']", "['user', 'assistant']")
    chat = {"messages": [{"role": "system", "content": "my secret"}, user("a?"), assistant("A!")]}
    with pytest.raises(InvalidExample, match="refuses it: unknown role"):
        trained(chat, template=strict)
    with pytest.raises(InvalidExample, match=r"refuses it$"):
        trained(chat, template=strict.replace("'unknown role'", "messages[0].content"))


def test_without_a_template_only_prompts_and_completions_are_taken() -> None:
    assert trained({"prompt": "a", "completion": "b"}, template=None) == ["b<|im_end|>"]
    with pytest.raises(InvalidExample, match="no chat template"):
        trained({"messages": [user("a?"), assistant("A!")]}, template=None)


def test_the_template_hash_is_of_its_text() -> None:
    assert template_hash(tokenizer()) == template_hash(tokenizer())
    assert template_hash(tokenizer()) != template_hash(tokenizer(REWRITING))
    assert template_hash(tokenizer(None)) is None
