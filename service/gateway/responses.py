"""What a request to `/v1/responses` may say. Nothing is kept here: whatever needs a stored response is refused by name.

An input names text and calls of the client's own functions. vLLM would take more: tools and media that it fetches, and
prompts of its own making.
"""

from typing import Any, cast

from service.errors import InvalidRequest
from service.gateway.fields import IGNORED, ITEMS, OUTPUT_KEYS, RESPONSE, STATEFUL
from service.gateway.request import (
    CompletionRequest,
    Fields,
    check_parts,
    check_template,
    fields_of,
    model_of,
    stream_of,
)

PARTS = frozenset({"content", "output", "summary"})
"""Members of an item that hold content parts."""
SUMMARY_PARTS = frozenset({"summary_text", "reasoning_text"})


def parse_response(raw: bytes) -> CompletionRequest:
    """Raises InvalidRequest for what is no JSON object, holds a field that may not pass, or needs what is not kept."""
    fields = fields_of(raw, RESPONSE | STATEFUL, IGNORED - RESPONSE)
    _refuse_state(fields)
    stream, _ = stream_of(fields)
    check_template(fields.get("chat_template_kwargs"))
    _check_tools(fields.get("tools", []))
    _check_input(fields.get("input"))
    return CompletionRequest(
        model=model_of(fields),
        # Whatever was asked for: vLLM's default is to keep it.
        fields={**fields, "store": False},
        stream=stream,
        include_usage=True,
        continuous_usage=False,
        choices=1,
        prompts=1,
        size=len(raw),
        counts=False,
    )


def _refuse_state(fields: Fields) -> None:
    for name in sorted(STATEFUL):
        value = fields.pop(name, False)
        if value is not False:
            raise InvalidRequest(
                f"'{name}' is not supported: this service keeps no responses, whatever 'store' says. Send the whole "
                "conversation in 'input'.",
                param=name,
                code="unsupported_parameter",
            )


def _check_tools(tools: Any) -> None:
    if not isinstance(tools, list):
        raise InvalidRequest("'tools' must be an array.", param="tools")
    for place, tool in enumerate(cast(list[Any], tools)):
        kind = cast(Fields, tool).get("type") if isinstance(tool, dict) else None
        if kind != "function":
            raise InvalidRequest(
                f"'tools[{place}]' must be of type 'function': this service calls no tools itself.",
                param=f"tools[{place}].type",
                code="unsupported_value",
            )


def _check_input(given: Any) -> None:
    if isinstance(given, str):
        return
    if not isinstance(given, list) or not given:
        raise InvalidRequest("'input' must be a string or an array of items.", param="input")
    for place, item in enumerate(cast(list[Any], given)):
        _check_item(item, f"input[{place}]")


def _check_item(item: Any, place: str) -> None:
    if not isinstance(item, dict):
        raise InvalidRequest(f"'{place}' must be an object.", param=place)
    item = cast(Fields, item)
    kind = item.get("type", "message")
    known = ITEMS.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise InvalidRequest(
            f"'{place}' must be of type {', '.join(ITEMS)}.", param=f"{place}.type", code="unsupported_value"
        )
    for name, value in item.items():
        if name not in known:
            raise InvalidRequest(f"Unknown parameter: '{place}.{name}'.", param=place, code="unknown_parameter")
        if name in PARTS and value is not None and not isinstance(value, str):
            if kind == "reasoning":
                _check_thoughts(value, f"{place}.{name}")
            else:
                check_parts(value, f"{place}.{name}", OUTPUT_KEYS)


def _check_thoughts(parts: Any, place: str) -> None:
    of_text = isinstance(parts, list) and all(
        isinstance(part, dict) and cast(Fields, part).keys() == {"type", "text"} and part["type"] in SUMMARY_PARTS
        for part in cast(list[Any], parts)
    )
    if not of_text:
        kinds = " or ".join(sorted(SUMMARY_PARTS))
        raise InvalidRequest(f"'{place}' may only have parts of type {kinds}.", param=place)
