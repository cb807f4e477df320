"""Examples into text with the spans that are trained. Owns the chat template and its quirks.

A conversation is rendered once; where an assistant message begins and ends in it is found by rendering the messages
before it and up to it, which must be literal prefixes of the whole. Turning text into tokens is `encode`.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from trainer.data.examples import Completion, Example, InvalidExample, template_message


@dataclass(frozen=True)
class Rendered:
    text: str
    spans: tuple[tuple[int, int], ...]
    """Characters that are trained, as half-open ranges in order."""
    plain: bool = False
    """No template wrote the text, so the tokenizer's own first token is due."""


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """sha256 of the chat template's text; of the one called "default" where there are several."""
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return hashlib.sha256(template.encode()).hexdigest() if template else None


class Renderer:
    """Renders with one tokenizer's template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._sources = str(tokenizer.chat_template or "")
        self._special = tuple(tokenizer.all_special_tokens)
        self._developer = "developer" in self._sources
        self._parts = bool(tokenizer.chat_template) and self._takes_parts()

    def render(self, example: Example) -> Rendered:
        """Raises InvalidExample where the template refuses the conversation or cannot be masked."""
        if isinstance(example, Completion):
            text = example.prompt + example.completion + str(self._tokenizer.eos_token or "")
            return Rendered(text, ((len(example.prompt), len(text)),), plain=True)
        if not self._tokenizer.chat_template:
            raise InvalidExample(
                "this base model has no chat template; it can learn from 'prompt' and 'completion' alone"
            )
        messages = [template_message(message, self._parts, self._developer) for message in example.messages]
        tools = example.template_tools()
        text = self._apply(messages, tools)
        spans = tuple(
            self._span(text, messages, tools, number)
            for number, message in enumerate(example.messages)
            if message.role == "assistant" and message.weight != 0
        )
        return Rendered(text, spans)

    def _span(self, text: str, messages: list[dict[str, Any]], tools: Any, number: int) -> tuple[int, int]:
        upto = self._apply(messages[: number + 1], tools)
        start = self._start(text, messages[:number], tools)
        if start is None or not text.startswith(upto) or len(upto) <= start:
            raise InvalidExample(
                f"the chat template of this base writes messages.{number} otherwise once more messages follow, "
                "so what to train cannot be told apart; give each assistant turn an example of its own"
            )
        # What follows the end-of-turn token, mostly a line break, is the template's and no model has to say it.
        trimmed = upto.rstrip()
        return start, len(trimmed) if trimmed.endswith(self._special) and len(trimmed) > start else len(upto)

    def _start(self, text: str, before: list[dict[str, Any]], tools: Any) -> int | None:
        """Where the answer begins: after the role header, if the template's generation prompt is what it writes."""
        if not before:
            return self._opening(text, tools)
        for prompt in (True, False):
            prefix = self._apply(before, tools, prompt)
            if text.startswith(prefix):
                return len(prefix)
        return None

    def _opening(self, text: str, tools: Any) -> int:
        """The same for a conversation that an assistant opens; not every template can render no message at all."""
        try:
            prefix = self._apply([], tools, True)
        except InvalidExample:
            return 0
        return len(prefix) if text.startswith(prefix) else 0

    def _apply(self, messages: list[dict[str, Any]], tools: Any, prompt: bool = False) -> str:
        # A conversation of no message is refused unless it comes as one of a batch.
        try:
            rendered = self._tokenizer.apply_chat_template(
                [messages], tools=tools, tokenize=False, add_generation_prompt=prompt
            )
        except TemplateError as error:
            # Only words that stand in the template itself are shown: the rest may be the tenant's.
            said = error.message or ""
            reason = f": {said}" if said and said in self._sources else ""
            raise InvalidExample(f"the chat template of this base refuses it{reason}") from None
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise InvalidExample(f"the chat template of this base cannot render it ({type(error).__name__})") from None
        return str(rendered[0])

    def _takes_parts(self) -> bool:
        """Whether the template goes through content parts itself; if not, it would print the list."""
        part = {"type": "text", "text": "probe"}
        try:
            text = self._apply([{"role": "user", "content": [part]}], None)
        except InvalidExample:
            return False
        return "probe" in text and "'type'" not in text and '"type"' not in text
