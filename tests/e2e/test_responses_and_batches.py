"""Responses and a batch through the stock `openai` package, against the whole embedded stack and a real vLLM."""

import io
import json
import time

import openai
import pytest
from openai import OpenAI

from tests.e2e.stack import Stack

pytestmark = pytest.mark.stack

BASE = "weft-tiny"
WAIT_SECONDS = 180


@pytest.fixture(scope="module")
def client(stack: Stack) -> OpenAI:
    return OpenAI(base_url=stack.base_url, api_key=stack.project("e2e-batches"))


def test_responses_agree_whole_and_streamed_and_are_metered(client: OpenAI) -> None:
    asked = {"model": BASE, "input": "Hello", "temperature": 0, "max_output_tokens": 16}
    whole = client.responses.create(**asked)  # type: ignore[call-overload]
    assert (whole.object, whole.model) == ("response", BASE)
    assert whole.usage.output_tokens <= 16
    events = list(client.responses.create(**asked, stream=True))  # type: ignore[call-overload]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.usage is not None
    assert last.response.usage.total_tokens == whole.usage.total_tokens
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=BASE, input="Hello", previous_response_id=whole.id)
    assert caught.value.code == "unsupported_parameter"


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_a_batch_is_answered_like_single_requests(client: OpenAI, endpoint: str) -> None:
    bodies = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8},
        "/v1/completions": {"prompt": "Hello", "max_tokens": 8},
        "/v1/responses": {"input": "Hello", "max_output_tokens": 8},
    }
    body = {"model": BASE, "temperature": 0, **bodies[endpoint]}
    lines = [{"custom_id": f"r{n}", "method": "POST", "url": endpoint, "body": body} for n in range(10)]
    text = "".join(json.dumps(each) + "\n" for each in lines).encode()
    file = client.files.create(file=("requests.jsonl", io.BytesIO(text)), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")  # type: ignore[arg-type]
    deadline = time.monotonic() + WAIT_SECONDS
    while batch.status not in ("completed", "failed", "expired") and time.monotonic() < deadline:
        time.sleep(0.5)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed", batch
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (10, 0)
    answers = [json.loads(each) for each in client.files.content(batch.output_file_id or "").text.splitlines()]
    assert {each["custom_id"] for each in answers} == {f"r{n}" for n in range(10)}
    used = [each["response"]["body"]["usage"]["total_tokens"] for each in answers]
    assert batch.usage is not None
    assert batch.usage.total_tokens == sum(used) > 0
