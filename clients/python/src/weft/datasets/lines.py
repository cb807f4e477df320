"""What one line of a training file must be: OpenAI's chat or preference example, or a prompt and its completion.

The rules are the service's own, written again because the client comes without the service; a test of the project
holds the two together. Problems name places and kinds and never quote the line.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from weft.datasets.reading import InvalidLine, is_object, parsed

MAX_MESSAGES = 1024
PREFERENCE_FIELDS = frozenset(
    {"input", "preferred_output", "non_preferred_output", "preferred_completion", "non_preferred_completion"}
)
MESSAGE_LISTS = {"messages"} | PREFERENCE_FIELDS - {"input"}
CODES = {
    "role": "unknown_role",
    "content": "invalid_content",
    "weight": "invalid_weight",
    "tool_calls": "invalid_tool_calls",
    "function_call": "invalid_tool_calls",
    "tools": "invalid_tools",
    "functions": "invalid_tools",
}
Example = tuple[str, dict[str, Any]]
"""A good line's format and what it holds."""


class _Shape(BaseModel):
    """Fields that are not named here are allowed."""

    model_config = ConfigDict(strict=True, extra="ignore")


def _json_object(text: str) -> str:
    if text.strip() and not is_object(text):
        raise ValueError("should be a JSON object in a string")
    return text


class _TextPart(_Shape):
    type: Literal["text"]
    text: str


class _Call(_Shape):
    name: str
    arguments: Annotated[str, AfterValidator(_json_object)] | dict[str, Any] = ""


class _ToolCall(_Shape):
    type: Literal["function"] = "function"
    function: _Call


class _Message(_Shape):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_TextPart] | None = None
    weight: Annotated[int, Field(ge=0, le=1)] | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Call | None = None

    @property
    def empty(self) -> bool:
        return not self.content and not self.tool_calls and self.function_call is None


class _Function(_Shape):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Tool(_Shape):
    type: Literal["function"] = "function"
    function: _Function


class _Chat(_Shape):
    messages: list[_Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    tools: list[_Tool] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[_Function] | None = None


class _Completion(_Shape):
    prompt: str
    completion: str = Field(min_length=1)


_Answer = Annotated[list[_Message], Field(min_length=1, max_length=1)]


class _Preference(_Shape):
    """A conversation and two ways to go on; OpenAI's guide and its schema spell those differently."""

    input: _Chat
    preferred: _Answer = Field(validation_alias=AliasChoices("preferred_output", "preferred_completion"))
    non_preferred: _Answer = Field(validation_alias=AliasChoices("non_preferred_output", "non_preferred_completion"))


def check_line(line: bytes) -> Example:
    """A good line. Raises InvalidLine."""
    value = parsed(line)
    try:
        return _format(value), value
    except ValidationError as error:
        raise _first_of(error) from None


def _format(value: dict[str, Any]) -> str:
    if "messages" in value:
        _check_chat(_Chat.model_validate(value))
        return "chat"
    if "prompt" in value or "completion" in value:
        _Completion.model_validate(value)
        return "completion"
    if PREFERENCE_FIELDS & value.keys():
        _check_preference(_Preference.model_validate(value))
        return "preference"
    raise InvalidLine("missing_messages", "has neither 'messages' nor 'prompt' and 'completion' nor 'input'")


def _check_chat(chat: _Chat) -> None:
    spoken = [(number, message) for number, message in enumerate(chat.messages) if message.role == "assistant"]
    if not spoken:
        raise InvalidLine("no_assistant_message", "has no assistant message, so there is nothing to learn from it")
    for number, message in spoken:
        if message.empty:
            raise InvalidLine("empty_assistant", f"messages.{number} has neither content nor tool_calls")
    if all(message.weight == 0 for _, message in spoken):
        raise InvalidLine("no_trained_message", "every assistant message has weight 0, so there is nothing to learn")


def _check_preference(example: _Preference) -> None:
    for number, message in enumerate(example.input.messages):
        if message.role == "assistant" and message.empty:
            raise InvalidLine("empty_assistant", f"input.messages.{number} has neither content nor tool_calls")
    for name, (answer,) in (("preferred", example.preferred), ("non-preferred", example.non_preferred)):
        if answer.role != "assistant":
            raise InvalidLine("not_an_assistant", f"the {name} answer is not an assistant message")
        if answer.empty:
            raise InvalidLine("empty_assistant", f"the {name} answer has neither content nor tool_calls")


def _first_of(error: ValidationError) -> InvalidLine:
    # The input and context of a pydantic error quote the value; its place, kind and fixed words do not.
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    # Where a field has alternatives each of them complains; the complaint from furthest inside is about the one meant.
    depth = 4 if errors[0]["loc"][0] == "input" else 3
    field = errors[0]["loc"][:depth]
    first = max((problem for problem in errors if problem["loc"][:depth] == field), key=lambda found: len(found["loc"]))
    place = [str(part) for part in first["loc"]]
    # Of a preference, its input is looked at as a chat example is.
    inner = place[1:] if place[0] == "input" and len(place) > 1 else place
    name = inner[2] if inner[0] in MESSAGE_LISTS and len(inner) > 2 else inner[0]
    code = CODES.get(name, f"invalid_{name}")
    if inner == ["messages"] and first["type"] == "too_short":
        code = "empty_messages"
    # Names such as "list[_TextPart]" are alternatives of ours, not places in the line.
    where = ".".join(part for part in place if (part.isidentifier() and part != "str") or part.isdigit())
    message = re.sub(r" or instance of \w+", "", first["msg"].removeprefix("Value error, "))
    return InvalidLine(code, f"{where}: {message}"[:300])
