"""One completion request: from the client's bytes to what vLLM is sent. Knows fields and limits, not the network.

What `/v1/responses` and `/v1/embeddings` have of their own is in modules of their names.
"""

from collections.abc import Set
from dataclasses import dataclass
from typing import Any, cast

import orjson

from service.errors import InvalidRequest, UnsupportedMedia
from service.gateway.fields import (
    IGNORED,
    MAX_CHOICES,
    MAX_SEQUENCES,
    PART_KEYS,
    STREAM_OPTIONS,
    TEMPLATE_SWITCHES,
    TEXT_PARTS,
    UNSUPPORTED,
)

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A checked request. `fields` may pass to vLLM; `choices` is n, `prompts` the number of prompts."""

    model: str
    fields: Fields
    stream: bool
    include_usage: bool
    continuous_usage: bool
    choices: int
    prompts: int
    size: int
    """Bytes that it came in."""
    counts: bool = True
    """Whether vLLM can be asked to count tokens in every event of a stream."""

    def upstream(self, model: str, cache_salt: str) -> bytes:
        """The body for a replica. Streams always count, so that one that breaks off can be metered."""
        body = {**self.fields, "model": model, "cache_salt": cache_salt}
        if self.stream and self.counts:
            body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        return orjson.dumps(body)

    def forget(self) -> None:
        """Frees what was parsed, which may be many times the bytes it came in. From here on there are no `fields`."""
        self.fields.clear()


def check_type(content_type: str) -> None:
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMedia("Send the body as JSON with 'Content-Type: application/json'.")


def parse(raw: bytes, allowed: frozenset[str]) -> CompletionRequest:
    """Raises InvalidRequest for what is no JSON object, holds a field that may not pass, or asks for too much."""
    fields = fields_of(raw, allowed)
    stream, options = stream_of(fields)
    choices, prompts = _sequences(fields)
    _check_messages(fields.get("messages"))
    check_template(fields.get("chat_template_kwargs"))
    return CompletionRequest(
        model=model_of(fields),
        fields=fields,
        stream=stream,
        include_usage=options.get("include_usage") is True,
        continuous_usage=options.get("include_usage") is True and options.get("continuous_usage_stats") is True,
        choices=choices,
        prompts=prompts,
        size=len(raw),
    )


def fields_of(raw: bytes, allowed: Set[str], ignored: Set[str] = IGNORED) -> Fields:
    """Those that may pass. Raises InvalidRequest for what is no JSON object, and for any other field by its name."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"We could not parse the JSON body of your request: {error}.") from error
    if not isinstance(body, dict):
        raise InvalidRequest("The request needs a JSON object as its body.")
    # Null means "the default" in OpenAI's protocol; vLLM does not read it so everywhere.
    fields = {name: value for name, value in cast(Fields, body).items() if value is not None and name not in ignored}
    # What OpenAI's clients may say without asking for anything.
    if fields.get("modalities") == ["text"]:
        del fields["modalities"]
    if "best_of" in fields and fields["best_of"] == fields.get("n", 1):
        del fields["best_of"]
    if not fields.keys() <= allowed:
        raise _refused(next(name for name in fields if name not in allowed))
    return fields


def _refused(name: str) -> InvalidRequest:
    if name in UNSUPPORTED:
        message = f"Unsupported parameter: '{name}' is not supported by the models of this service."
        return InvalidRequest(message, param=name, code="unsupported_parameter")
    return InvalidRequest(f"Unrecognized request argument supplied: {name}", param=name, code="unknown_parameter")


def model_of(fields: Fields) -> str:
    model = fields.get("model")
    if model is None:
        raise InvalidRequest("You must provide a model parameter.", param="model")
    if not isinstance(model, str):
        raise InvalidRequest("'model' must be a string.", param="model")
    return model


def stream_of(fields: Fields) -> tuple[bool, Fields]:
    stream, options = fields.get("stream", False), fields.pop("stream_options", {})
    if not isinstance(stream, bool):
        raise InvalidRequest("'stream' must be true or false.", param="stream")
    if not isinstance(options, dict):
        raise InvalidRequest("'stream_options' must be an object.", param="stream_options")
    options = cast(Fields, options)
    if options and not stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    for name in options:
        if name not in STREAM_OPTIONS:
            param = f"stream_options.{name}"
            raise InvalidRequest(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    return stream, options


def _sequences(fields: Fields) -> tuple[int, int]:
    choices, prompt = fields.get("n", 1), fields.get("prompt")
    if type(choices) is not int or not 1 <= choices <= MAX_CHOICES:
        raise InvalidRequest(f"'n' must be a whole number from 1 to {MAX_CHOICES}.", param="n")
    prompts = 1
    if isinstance(prompt, list):
        prompt = cast(list[Any], prompt)
        # A list of numbers is one prompt of tokens.
        prompts = len(prompt) if prompt and isinstance(prompt[0], (str, list)) else 1
    if choices * prompts > MAX_SEQUENCES:
        raise InvalidRequest(f"A request may have at most {MAX_SEQUENCES} prompts times choices.", param="prompt")
    return choices, prompts


def _check_messages(messages: Any) -> None:
    if messages is None:
        return
    if not isinstance(messages, list):
        raise InvalidRequest("'messages' must be an array.", param="messages")
    for place, message in enumerate(cast(list[Any], messages)):
        if not isinstance(message, dict):
            raise InvalidRequest(f"'messages[{place}]' must be an object.", param=f"messages[{place}]")
        content = cast(Fields, message).get("content")
        if content is not None and not isinstance(content, str):
            check_parts(content, f"messages[{place}].content")


def check_parts(parts: Any, place: str, keys: Set[str] = PART_KEYS) -> None:
    """Raises InvalidRequest where a content is anything but text."""
    if not isinstance(parts, list):
        raise InvalidRequest(f"'{place}' must be a string or an array of content parts.", param=place)
    for part in cast(list[Any], parts):
        if isinstance(part, str):
            continue
        if not isinstance(part, dict):
            raise InvalidRequest(f"Each part of '{place}' must be an object.", param=place)
        part = cast(Fields, part)
        kind = part.get("type", "text")
        if not isinstance(kind, str) or kind not in TEXT_PARTS or not part.keys() <= keys:
            raise InvalidRequest(f"'{place}' may only have parts of type 'text' with their text.", param=place)


def check_template(switches: Any) -> None:
    if switches is None:
        return
    ours = isinstance(switches, dict) and all(
        name in TEMPLATE_SWITCHES and isinstance(value, bool) for name, value in cast(Fields, switches).items()
    )
    if not ours:
        names = ", ".join(sorted(TEMPLATE_SWITCHES))
        raise InvalidRequest(
            f"'chat_template_kwargs' may only hold true or false for: {names}.", param="chat_template_kwargs"
        )
