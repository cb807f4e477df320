"""The gateway's routes as OpenAPI has them. They are plain ASGI, so nothing derives their schemas from types.

The names of the fields come from the gateway's own lists; here is what each of them takes.
"""

from typing import Any, Final

from service.gateway import fields
from service.gateway.embeddings import ENCODINGS
from service.gateway.routes import EMBEDDINGS

Schema = dict[str, Any]


def _number(low: float | None = None, high: float | None = None) -> Schema:
    return {"type": "number", **_bounds(low, high)}


def _integer(low: int | None = None, high: int | None = None) -> Schema:
    return {"type": "integer", **_bounds(low, high)}


def _bounds(low: float | None, high: float | None) -> Schema:
    return ({} if low is None else {"minimum": low}) | ({} if high is None else {"maximum": high})


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


TEXT: Final[Schema] = {"type": "string"}
YES_OR_NO: Final[Schema] = {"type": "boolean"}
OBJECT: Final[Schema] = {"type": "object"}

FIELDS: Final[dict[str, Schema]] = {
    "add_generation_prompt": YES_OR_NO,
    "add_special_tokens": YES_OR_NO,
    "allowed_token_ids": _list(_integer(0)),
    "bad_words": _list(TEXT),
    "chat_template_kwargs": {
        "type": "object",
        "properties": dict.fromkeys(sorted(fields.TEMPLATE_SWITCHES), YES_OR_NO),
        "additionalProperties": False,
    },
    "continue_final_message": YES_OR_NO,
    "dimensions": _integer(1),
    "echo": YES_OR_NO,
    "encoding_format": {"type": "string", "enum": list(ENCODINGS)},
    "frequency_penalty": _number(-2, 2),
    "ignore_eos": YES_OR_NO,
    "include": _list(TEXT),
    "include_reasoning": YES_OR_NO,
    "include_stop_str_in_output": YES_OR_NO,
    "input": {"anyOf": [TEXT, {"type": "array"}], "description": "A text, or items of the route's own kind."},
    "instructions": TEXT,
    "logit_bias": {"type": "object", "additionalProperties": _number(-100, 100)},
    "logprob_token_ids": _list(_integer(0)),
    "logprobs": {"description": "True or false for chat, a count for completions.", "type": ["boolean", "integer"]},
    "max_completion_tokens": _integer(1),
    "max_output_tokens": _integer(1),
    "max_tokens": _integer(0),
    "max_tool_calls": _integer(0),
    "messages": {"type": "array", "minItems": 1, "items": _ref("ChatMessage")},
    "metadata": {"type": "object", "additionalProperties": TEXT},
    "min_p": _number(0, 1),
    "min_tokens": _integer(0),
    "model": {**TEXT, "description": "A base model's name or a fine-tuned model's."},
    "n": _integer(1, fields.MAX_CHOICES),
    "parallel_tool_calls": YES_OR_NO,
    "presence_penalty": _number(-2, 2),
    "prompt": {
        "anyOf": [TEXT, _list(TEXT), _list(_integer(0)), _list(_list(_integer(0)))],
        "description": "A text, its tokens, or a list of either.",
    },
    "prompt_logprobs": _integer(0),
    "reasoning": OBJECT,
    "reasoning_effort": TEXT,
    "repetition_detection": OBJECT,
    "repetition_penalty": _number(),
    "response_format": {**OBJECT, "description": "`text`, `json_object` or `json_schema`, as OpenAI has them."},
    "return_token_ids": YES_OR_NO,
    "return_tokens_as_token_ids": YES_OR_NO,
    "seed": _integer(),
    "service_tier": TEXT,
    "skip_special_tokens": YES_OR_NO,
    "spaces_between_special_tokens": YES_OR_NO,
    "stop": {"anyOf": [TEXT, _list(TEXT)]},
    "stop_token_ids": _list(_integer(0)),
    "stream": {**YES_OR_NO, "description": "Server-sent events, ended by `data: [DONE]`."},
    "stream_interval": _integer(1),
    "stream_options": {
        "type": "object",
        "properties": dict.fromkeys(sorted(fields.STREAM_OPTIONS), YES_OR_NO),
        "additionalProperties": False,
    },
    "structured_outputs": OBJECT,
    "suffix": TEXT,
    "temperature": _number(0),
    "text": OBJECT,
    "thinking_token_budget": _integer(0),
    "tool_choice": {"anyOf": [TEXT, OBJECT]},
    "tools": _list(OBJECT),
    "top_k": _integer(-1),
    "top_logprobs": _integer(0),
    "top_p": _number(0, 1),
    "truncate_prompt_tokens": _integer(-1),
    "truncation": TEXT,
    "truncation_side": {"type": "string", "enum": ["left", "right"]},
    "user": TEXT,
}
"""What vLLM refuses beyond this it answers with a 400 that names the field."""


def _request(allowed: frozenset[str], required: list[str], ignored_too: frozenset[str] = fields.IGNORED) -> Schema:
    known = {name: {"anyOf": [FIELDS[name], {"type": "null"}]} for name in sorted(allowed)}
    ignored = {name: {"description": "Taken without effect."} for name in sorted(ignored_too - allowed)}
    needed = {name: FIELDS[name] for name in required}
    return {
        "type": "object",
        "properties": known | ignored | needed,
        "required": required,
        "additionalProperties": False,
    }


def _answer(kind: str, choice: Schema) -> Schema:
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": TEXT,
            "object": {"type": "string", "const": kind},
            "created": _integer(),
            "model": TEXT,
            "choices": _list(choice),
            "usage": _ref("CompletionUsage"),
        },
    }


def _choice(content: str, schema: Schema) -> Schema:
    finish = {"type": ["string", "null"], "description": "`stop`, `length`, `tool_calls` or what else ended it."}
    properties = {"index": _integer(0), content: schema, "finish_reason": finish}
    return {"type": "object", "required": list(properties), "properties": properties}


def _stored(properties: Schema, required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required}


SCHEMAS: Final[dict[str, Schema]] = {
    "ChatMessage": _stored(
        {
            "role": TEXT,
            "content": {"anyOf": [TEXT, _list(_ref("TextPart")), {"type": "null"}]},
            "name": TEXT,
            "tool_calls": _list(OBJECT),
            "tool_call_id": TEXT,
        },
        ["role"],
    ),
    "TextPart": _stored({"type": {"type": "string", "enum": sorted(fields.TEXT_PARTS)}, "text": TEXT}, ["type"]),
    "CompletionUsage": _stored(
        {"prompt_tokens": _integer(0), "completion_tokens": _integer(0), "total_tokens": _integer(0)},
        ["prompt_tokens", "completion_tokens", "total_tokens"],
    ),
    "CreateChatCompletion": _request(fields.CHAT, ["model", "messages"]),
    "CreateCompletion": _request(fields.COMPLETION, ["model", "prompt"]),
    "CreateResponse": _request(fields.RESPONSE, ["model", "input"], fields.IGNORED | fields.STATEFUL),
    "CreateEmbedding": _request(fields.EMBEDDING, ["model", "input"]),
    "ChatCompletion": _answer("chat.completion", _choice("message", _ref("ChatMessage"))),
    "Completion": _answer("text_completion", _choice("text", TEXT)),
    "Response": _stored(
        {
            "id": TEXT,
            "object": {"type": "string", "const": "response"},
            "created_at": _integer(),
            "model": TEXT,
            "status": TEXT,
            "output": _list(OBJECT),
            "usage": {"anyOf": [OBJECT, {"type": "null"}]},
        },
        ["id", "object", "created_at", "model", "status", "output"],
    ),
}


def _asked(name: str, title: str, request: str, said: str) -> Schema:
    return {
        "tags": ["inference"],
        "summary": title,
        "description": said,
        "operationId": name,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(request)}}},
        "responses": {},
    }


def _operation(name: str, title: str, request: str, answer: str) -> Schema:
    return _asked(name, title, request, "Answers with a base model or with a fine-tuned one; tokens are metered.") | {
        "responses": {
            "200": {
                "description": "The answer, or with `stream` its chunks as server-sent events.",
                "content": {
                    "application/json": {"schema": _ref(answer)},
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            }
        },
    }


PATHS: Final[dict[str, Schema]] = {
    "/v1/chat/completions": _operation(
        "create_chat_completion", "Create Chat Completion", "CreateChatCompletion", "ChatCompletion"
    ),
    "/v1/completions": _operation("create_completion", "Create Completion", "CreateCompletion", "Completion"),
    "/v1/responses": _operation("create_response", "Create Response", "CreateResponse", "Response"),
    EMBEDDINGS: _asked(
        "create_embedding",
        "Create Embedding",
        "CreateEmbedding",
        "Refused for every model so far: all of them generate text.",
    ),
}
"""The POST of each path."""
