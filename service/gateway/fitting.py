"""Prompts that no counting of tokens could make fit the base: refused before they wait and are held for a replica.

vLLM counts exactly and refuses by the same bound first: no token stands for more characters than the longest one has.
"""

from typing import Any, cast

from service.contracts.base_model import BaseModelInfo
from service.errors import InvalidRequest
from service.gateway.request import CompletionRequest, Fields


def check_fits(request: CompletionRequest, base: BaseModelInfo | None) -> None:
    """Raises InvalidRequest as a replica would; of a base that is no longer offered, nothing is known."""
    # Tokens and characters take at least a byte each. With `truncate_prompt_tokens` any prompt can be made to fit.
    if base is None or request.size <= base.context_length or request.fields.get("truncate_prompt_tokens") is not None:
        return
    fields = request.fields
    if (prompt := fields.get("prompt")) is not None:
        _check_prompt(prompt, base)
    elif isinstance(text := fields.get("input"), str):
        _check_text(len(text), "input", base)
    else:
        _check_text(sum(map(_said_by_user, fields.get("messages") or ())), "messages", base)


def _check_prompt(prompt: Any, base: BaseModelInfo) -> None:
    if isinstance(prompt, str):
        _check_text(len(prompt), "prompt", base)
    elif isinstance(prompt, list):
        prompt = cast(list[Any], prompt)
        if prompt and not isinstance(prompt[0], (str, list)) and len(prompt) > base.context_length:
            raise _too_long(base, f"{len(prompt)} tokens", "prompt")
        for one in prompt:
            if isinstance(one, (str, list)):
                _check_prompt(one, base)


def _check_text(characters: int, param: str, base: BaseModelInfo) -> None:
    if base.longest_token is not None and characters > base.context_length * base.longest_token:
        raise _too_long(base, f"{characters} characters", param)


def _said_by_user(message: Fields) -> int:
    """Characters; a template may leave out what others said."""
    content = message.get("content") if message.get("role") == "user" else None
    if isinstance(content, str):
        return len(content)
    return sum(_length(part) for part in cast(list[Any], content or ()))


def _length(part: Any) -> int:
    text = cast(Fields, part).get("text") if isinstance(part, dict) else part
    return len(text) if isinstance(text, str) else 0


def _too_long(base: BaseModelInfo, given: str, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"This model's maximum context length is {base.context_length} tokens. However, your prompt has {given}, which "
        "cannot be fewer tokens than that. Please reduce the length of the input prompt.",
        code="context_length_exceeded",
        param=param,
    )
