"""Bad input gets OpenAI's error envelope with a code, its line where it has one; nothing is stored, nothing lost."""

import io
import json
from typing import Any

import openai
import pytest
from openai import OpenAI

from deploy.local.tiny_base.tasks import examples
from tests.e2e.stack import Stack
from tests.e2e.training import as_jsonl

pytestmark = pytest.mark.stack

GOOD = [json.dumps(line).encode() for line in examples("support-desk", 12, seed=1)]


def spoiled(line: bytes, at: int = 3) -> bytes:
    """A good file with its line `at` (counted from 1) replaced."""
    return b"\n".join([*GOOD[: at - 1], line, *GOOD[at:]]) + b"\n"


def chat(*messages: dict[str, Any]) -> bytes:
    return json.dumps({"messages": list(messages)}).encode()


USER = {"role": "user", "content": "hi"}
BAD_FILES = {
    "not JSONL": spoiled(b"order 12 ships to Lund"),
    "unknown role": spoiled(chat({"role": "wizard", "content": "hi"}, {"role": "assistant", "content": "x"})),
    "empty messages": spoiled(chat()),
    "a 5 MiB line": spoiled(chat(USER, {"role": "assistant", "content": "x" * (5 << 20)})),
    "a NUL": spoiled(chat(USER, {"role": "assistant", "content": "a\0b"})),
    "invalid UTF-8": spoiled(b'{"messages":[{"role":"user","content":"\xff\xfe"}]}'),
}


@pytest.fixture(scope="module")
def client(stack: Stack) -> OpenAI:
    return OpenAI(base_url=stack.base_url, api_key=stack.project("bad-input"), max_retries=0)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_training_file_is_refused_with_its_line(client: OpenAI, kind: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("bad.jsonl", io.BytesIO(BAD_FILES[kind])), purpose="fine-tune")
    assert refused.value.code == "invalid_training_file"
    assert "line 3" in refused.value.message
    assert refused.value.request_id
    assert list(client.files.list()) == []


def test_fewer_than_ten_examples(client: OpenAI) -> None:
    uploaded = client.files.create(file=as_jsonl(examples("support-desk", 5, seed=1)), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model="weft-tiny", training_file=uploaded.id)
    assert refused.value.code == "invalid_n_examples"
    assert "5 example(s)" in refused.value.message
    client.files.delete(uploaded.id)


def test_wrong_purpose(client: OpenAI) -> None:
    uploaded = client.files.create(file=as_jsonl(examples("support-desk", 12, seed=1)), purpose="batch")
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model="weft-tiny", training_file=uploaded.id)
    assert refused.value.code == "invalid_file_purpose"
    client.files.delete(uploaded.id)
    with pytest.raises(openai.BadRequestError) as unknown:
        client.files.create(file=as_jsonl(examples("support-desk", 12, seed=1)), purpose="fun")  # type: ignore[arg-type]
    assert unknown.value.param == "purpose"


def test_unknown_model(client: OpenAI) -> None:
    uploaded = client.files.create(file=as_jsonl(examples("support-desk", 12, seed=1)), purpose="fine-tune")
    with pytest.raises(openai.NotFoundError) as refused:
        client.fine_tuning.jobs.create(model="gpt-17", training_file=uploaded.id)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as chatted:
        client.chat.completions.create(model="gpt-17", messages=[{"role": "user", "content": "hi"}])
    assert chatted.value.code == "model_not_found"
    client.files.delete(uploaded.id)


def test_missing_and_deleted_files_are_answered_alike(client: OpenAI) -> None:
    uploaded = client.files.create(file=as_jsonl(examples("support-desk", 12, seed=1)), purpose="fine-tune")
    client.files.delete(uploaded.id)
    answers = set()
    for file in (uploaded.id, "file-000000000000000000000000"):
        with pytest.raises(openai.BadRequestError) as refused:
            client.fine_tuning.jobs.create(model="weft-tiny", training_file=file)
        answers.add((refused.value.code, refused.value.param, refused.value.message.replace(file, "ID")))
    assert len(answers) == 1
    assert answers.pop()[:2] == ("file_not_found", "training_file")


def test_a_prompt_longer_than_the_context(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="weft-tiny", messages=[{"role": "user", "content": "a" * 5000}])
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.type == "invalid_request_error"


def test_after_all_that_the_service_still_works(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="weft-tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=4
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert list(client.files.list()) == []
    assert list(client.fine_tuning.jobs.list()) == []
