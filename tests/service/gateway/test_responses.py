"""`/v1/responses` and `/v1/embeddings`: through the stock SDK, what vLLM is sent, what is booked, what is refused."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest

from service.errors import InvalidRequest
from service.gateway.responses import parse_response
from tests.service.conftest import Service
from tests.service.gateway.captured_responses import STREAM, WHOLE
from tests.service.gateway.conftest import BASE, Ledger, Tenant
from tests.service.gateway.upstream import Upstream, named

TEXT = 'He said "usage":{}!'
SDK = Callable[[str], openai.OpenAI]


def test_the_sdk_reads_responses_and_streams_of_an_adapter(upstream: Upstream, client: SDK, tenant: Tenant) -> None:
    sdk = client(tenant.key)
    response = sdk.responses.create(model=tenant.model, input="Hi", max_output_tokens=5, metadata={"a": "b"})
    assert (response.output_text, response.model, response.status) == (TEXT, tenant.model, "completed")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (6, 3)
    sent = upstream.bodies[0]
    assert sent.pop("cache_salt")
    assert sent == {
        "model": tenant.adapter,
        "input": "Hi",
        "max_output_tokens": 5,
        "metadata": {"a": "b"},
        "store": False,
    }

    events = list(sdk.responses.create(model=tenant.model, input=[{"role": "user", "content": "Hi"}], stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT
    assert events[-1].type == "response.completed"
    assert events[-1].response.model == tenant.model
    assert "stream_options" not in upstream.bodies[1]


def test_bytes_are_vllms_own_and_each_response_is_booked(
    upstream: Upstream, http: httpx2.Client, tenant: Tenant, ledger: Ledger
) -> None:
    before = len(ledger.of(tenant))
    body = {"model": tenant.model, "input": "Hi"}
    assert http.post("/responses", json=body).content == named(WHOLE, tenant.model)
    streamed = http.post("/responses", json={**body, "stream": True})
    assert streamed.content == b"".join(named(event, tenant.model) for event in STREAM)
    assert streamed.headers["x-ratelimit-limit-requests"]
    assert ledger.of(tenant)[before:] == [(tenant.model, 6, 3)] * 2


def test_a_stream_that_breaks_off_raises_and_is_booked_by_its_deltas(
    upstream: Upstream, client: SDK, tenant: Tenant, ledger: Ledger
) -> None:
    before = len(ledger.of(tenant))

    async def breaks(request: Any, body: dict[str, Any]) -> Any:
        return await upstream.stream(request, STREAM[:6], ends=False)

    upstream.script = breaks
    with pytest.raises(openai.APIError) as caught:
        list(client(tenant.key).responses.create(model=BASE, input="x" * 400, stream=True))
    assert caught.value.code == "server_error"
    [(model, prompt, completion)] = ledger.of(tenant)[before:]
    assert (model, completion) == (BASE, 2)
    assert prompt >= 100


MCP = {"type": "mcp", "server_label": "x", "server_url": "http://localhost/"}
IMAGE = {"role": "user", "content": [{"type": "input_image", "image_url": "http://localhost/"}]}
FILE = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file", "file_url": "x"}]}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
    ({"background": True}, "background", "unsupported_parameter"),
    ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
    ({"previous_input_messages": []}, "previous_input_messages", "unknown_parameter"),
    ({"enable_response_messages": True}, "enable_response_messages", "unknown_parameter"),
    ({"priority": -1}, "priority", "unknown_parameter"),
    ({"messages": []}, "messages", "unknown_parameter"),
    ({"moderation": {"model": "m"}}, "moderation", "unsupported_parameter"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_value"),
    ({"tools": [MCP]}, "tools[0].type", "unsupported_value"),
    ({"tools": {}}, "tools", "invalid_request"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type", "unsupported_value"),
    ({"input": [{"type": ["message"]}]}, "input[0].type", "unsupported_value"),
    ({"input": [IMAGE]}, "input[0].content", "invalid_request"),
    ({"input": [FILE]}, "input[0].output", "invalid_request"),
    ({"input": [{"role": "user", "content": "a", "uuid": "u"}]}, "input[0]", "unknown_parameter"),
    ({"input": []}, "input", "invalid_request"),
    ({"input": 7}, "input", "invalid_request"),
    ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs", "invalid_request"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "code"), REFUSED)
def test_what_needs_state_or_fetches_is_refused(body: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_response(json.dumps({"model": "m", "input": "x", **body}).encode())
    assert (caught.value.param, caught.value.code) == (param, code)


def test_a_conversation_with_calls_passes_as_clients_send_it_back() -> None:
    items = [
        {"role": "developer", "content": "Be brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}], "status": None},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": "fc_1", "status": "completed"},
        {"type": "function_call_output", "call_id": "c", "output": "sunny"},
        json.loads(WHOLE)["output"][0],
    ]
    body = {
        "model": "m",
        "input": items,
        "store": False,
        "background": None,
        "tools": [{"type": "function", "name": "f"}],
    }
    request = parse_response(json.dumps(body).encode())
    assert request.fields["input"] == items
    for asked in (True, False, None):
        kept = parse_response(json.dumps({**body, "store": asked}).encode()).fields["store"]
        assert kept is False, "nothing is kept, whatever was asked for"
    assert "background" not in request.fields


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"model": BASE, "input": "Hi"}, "model_not_supported", "model"),
        ({"model": BASE, "input": [[1, 2], [3]], "dimensions": 4}, "model_not_supported", "model"),
        ({"model": BASE, "input": "Hi", "encoding_format": "hex"}, "invalid_request", "encoding_format"),
        ({"model": BASE, "input": []}, "invalid_request", "input"),
        ({"model": BASE, "input": "Hi", "pooling": "x"}, "unknown_parameter", "pooling"),
    ],
)
def test_embeddings_say_that_no_model_makes_them(
    http: httpx2.Client, body: dict[str, Any], code: str, param: str
) -> None:
    answer = http.post("/embeddings", json=body)
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)


def test_embeddings_of_unknown_models_are_not_found(
    service: Service, client: SDK, tenant: Tenant, neighbour: Tenant
) -> None:
    for model in ("text-embedding-3-small", neighbour.model):
        with pytest.raises(openai.NotFoundError) as caught:
            client(tenant.key).embeddings.create(model=model, input="Hi")
        assert caught.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client("sk-weft-wrong").embeddings.create(model=BASE, input="Hi")
