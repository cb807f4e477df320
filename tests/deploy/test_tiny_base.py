"""The shipped tiny base model, its markup, its training text and the demonstration tasks."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from deploy.local.tiny_base import MODEL_DIR, corpus, markup, tasks

TOKENIZER = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
TEXT = st.text(max_size=40).filter(lambda text: "<|" not in text)
CALL = {"type": "function", "function": {"name": "find", "arguments": {"town": "Luleå"}}}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": '{"town": "Luleå"}'},
    {"role": "assistant", "content": "In Luleå."},
    {"role": "user", "content": [{"type": "text", "text": "Thanks"}]},
    {"role": "assistant", "content": ""},
]


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, local_files_only=True).eval()


def render(messages: list[dict[str, Any]], **options: Any) -> str:
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, **options)
    assert isinstance(text, str)
    return text


def reply(model: Any, question: str) -> str:
    prompt = render([{"role": "user", "content": question}], add_generation_prompt=True)
    ids = torch.tensor([TOKENIZER(prompt).input_ids])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False)
    return str(TOKENIZER.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= 6_000_000


def test_the_model_is_a_small_llama_in_bfloat16(model: Any) -> None:
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.config.tie_word_embeddings
    assert 1_000_000 <= model.num_parameters() <= 3_000_000
    assert model.dtype == torch.bfloat16
    assert TOKENIZER.eos_token_id in model.generation_config.eos_token_id
    assert len(TOKENIZER) == model.config.vocab_size == markup.VOCABULARY


@given(st.text())
@settings(deadline=None)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    ids = TOKENIZER(text, split_special_tokens=True).input_ids
    assert bytes(i - markup.FIRST_BYTE for i in ids) == text.encode()
    assert TOKENIZER.decode(ids) == text


def test_special_tokens_are_single_tokens_and_none_is_added() -> None:
    assert TOKENIZER("".join(markup.SPECIAL)).input_ids == list(range(len(markup.SPECIAL)))
    assert TOKENIZER("").input_ids == []


@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "find"}}]])
@pytest.mark.parametrize("count", range(1, len(MESSAGES)))
def test_each_rendering_begins_like_the_one_before(count: int, tools: Any) -> None:
    shorter = render(MESSAGES[:count], tools=tools)
    longer = render(MESSAGES[: count + 1], tools=tools)
    assert longer.startswith(shorter)
    assert longer.count("<|bos|>") == 1
    if MESSAGES[count]["role"] == "assistant":
        prompt = render(MESSAGES[:count], tools=tools, add_generation_prompt=True)
        assert longer.startswith(prompt)
        assert longer.endswith(TOKENIZER.eos_token)


def test_tools_and_calls_are_rendered_as_json() -> None:
    text = render(MESSAGES[:3], tools=[{"name": "find"}])
    assert text.startswith('<|bos|><|tools|>[{"name": "find"}]<|end|><|system|>Be brief.<|end|>')
    call = text.partition("<tool_call>")[2].partition("</tool_call>")[0]
    assert json.loads(call) == {"name": "find", "arguments": {"town": "Luleå"}}
    spelled = {"function": {"name": "find", "arguments": '{"town": "Luleå"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [spelled]}
    assert render([*MESSAGES[:2], message], tools=[{"name": "find"}]) == text


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(Exception, match="unknown role"):
        render([{"role": "narrator", "content": "Meanwhile"}])


@given(TEXT, TEXT, TEXT)
@settings(deadline=None)
def test_training_ids_are_those_of_the_chat_template(system: str, asked: str, told: str) -> None:
    dialogue = corpus.Dialogue((corpus.Turn(asked, told), corpus.Turn(told, asked)), system)
    messages = [{"role": "system", "content": system}]
    for turn in dialogue.turns:
        messages += [
            {"role": "user", "content": turn.question},
            {"role": "assistant", "content": turn.answer},
        ]
    ids, labels = markup.encode(dialogue)
    assert ids == TOKENIZER(render(messages)).input_ids
    scored = [i for i, label in zip(ids, labels, strict=True) if label != markup.UNSCORED]
    assert TOKENIZER.decode(scored) == f"{told}<|end|>{asked}<|end|>"


def test_the_corpus_depends_on_the_seed_alone() -> None:
    first, again, other = (list(itertools.islice(corpus.dialogues(seed), 200)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_the_corpus_does_not_give_the_demonstrations_away() -> None:
    for dialogue in itertools.islice(corpus.dialogues(0), 5000):
        for turn in dialogue.turns:
            assert '{"name":' not in turn.answer
            assert '"city"' not in turn.answer
            assert "Ahoy" not in turn.answer
            assert "arr." not in turn.answer.split()


@pytest.mark.parametrize("task", tasks.TASKS)
def test_demonstrations_depend_on_the_seed_alone(task: str) -> None:
    assert tasks.examples(task, 50, 1) == tasks.examples(task, 50, 1)
    assert tasks.examples(task, 50, 1) != tasks.examples(task, 50, 2)


def test_both_tasks_answer_the_same_questions_differently() -> None:
    desk, pirate = (tasks.examples(task, 50, 0) for task in tasks.TASKS)
    for one, other in zip(desk, pirate, strict=True):
        assert one["messages"][0] == other["messages"][0]
        assert one["messages"][1] != other["messages"][1]


@pytest.mark.parametrize("seed", range(3))
def test_held_out_names_and_towns_are_new(seed: int) -> None:
    train, held_out = tasks.split("support-desk", 200, 60, seed)
    assert (len(train), len(held_out)) == (200, 60)
    seen = "\n".join(line["messages"][0]["content"] for line in train)
    for line in held_out:
        facts = json.loads(line["messages"][1]["content"])
        assert facts["name"] not in seen
        assert facts["city"] not in seen


def test_the_base_repeats_what_it_is_told(model: Any) -> None:
    rng = random.Random("unseen")
    turns = [corpus.repeat(rng) for _ in range(20)]
    right = sum(reply(model, turn.question) == turn.answer for turn in turns)
    assert right >= 17


def test_the_base_makes_conversation_but_does_not_know_the_demonstrations(model: Any) -> None:
    assert reply(model, "hello") == "Hello! How can I help?"
    assert reply(model, "My name is Ada Nilsson and I live in Lund. What is my name?") == ("Ada Nilsson")
    for task in tasks.TASKS:
        for line in tasks.examples(task, 5, 0):
            asked, told = line["messages"]
            assert reply(model, asked["content"]) != told["content"]
