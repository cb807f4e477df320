"""`/v1/embeddings`, for which there is no model yet: every base here generates text, and vLLM embeds with others only.

The request is judged as OpenAI judges it, so that a client learns of its own mistakes before it learns of this.
"""

from typing import Any, cast

from service.errors import InvalidRequest
from service.gateway.fields import EMBEDDING
from service.gateway.request import fields_of, model_of

ENCODINGS = ("float", "base64")


def parse_embedding(raw: bytes) -> str:
    """The model that is asked for. Raises InvalidRequest."""
    fields = fields_of(raw, EMBEDDING)
    model = model_of(fields)
    given = fields.get("input")
    if not given or not (isinstance(given, str) or _all_texts_or_tokens(given)):
        raise InvalidRequest("'input' must be a string, an array of strings or tokens.", param="input")
    if fields.get("encoding_format", "float") not in ENCODINGS:
        raise InvalidRequest(f"'encoding_format' must be one of {', '.join(ENCODINGS)}.", param="encoding_format")
    return model


def not_embedding(model: str) -> InvalidRequest:
    return InvalidRequest(
        f"The model '{model}' generates text and makes no embeddings; this service has no model that does.",
        param="model",
        code="model_not_supported",
    )


def _all_texts_or_tokens(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(each, str | int | list) for each in cast(list[Any], given))
