"""One line of a training file: what shapes are accepted and what a chat template is given for them.

Owns the reading of OpenAI's chat examples, the deprecated `functions` spelling included, of prompt/completion pairs,
and of preference examples, which become two conversations: one with the preferred answer, one with the other. How they
turn into text is `render`; which file and line they come from is `prepare`.
"""

from typing import Annotated, Any, Literal

import orjson
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from service.contracts.job import Method

MAX_MESSAGES = 1024
"""Rendering prefixes costs the square of the messages; no conversation that fits a context comes near this."""


class InvalidExample(Exception):
    """A line that cannot be trained on. The message never quotes the line."""


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class TextPart(_Open):
    type: Literal["text"]
    text: str


def _arguments(value: object) -> object:
    """OpenAI sends arguments as a JSON text; chat templates take an object, as vLLM gives it to them."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value) if value.strip() else {}
    except orjson.JSONDecodeError:
        raise ValueError("must be a JSON object in a string") from None


class FunctionCall(_Open):
    name: str
    arguments: Annotated[dict[str, Any], BeforeValidator(_arguments)] = {}


class ToolCall(_Open):
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(_Open):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    weight: Literal[0, 1] | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None


class Function(_Open):
    name: str


class Tool(_Open):
    type: Literal["function"] = "function"
    function: Function


class Chat(_Open):
    """One conversation with its tools."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    tools: list[Tool] | None = None
    functions: list[Function] | None = None

    def template_tools(self) -> list[dict[str, Any]] | None:
        if self.functions:
            return [{"type": "function", "function": function.model_dump()} for function in self.functions]
        return [tool.model_dump() for tool in self.tools] if self.tools else None


Answer = Annotated[list[Message], Field(min_length=1, max_length=1)]


class Preference(_Open):
    """One conversation and two ways to answer it, in either of OpenAI's spellings."""

    input: Chat
    preferred: Answer = Field(validation_alias=AliasChoices("preferred_output", "preferred_completion"))
    non_preferred: Answer = Field(validation_alias=AliasChoices("non_preferred_output", "non_preferred_completion"))

    def answered(self, answer: Message) -> Chat:
        """The conversation with one of the answers, which alone is trained."""
        context = [message.model_copy(update={"weight": 0}) for message in self.input.messages]
        messages = [*context, answer.model_copy(update={"weight": 1})]
        return self.input.model_copy(update={"messages": messages})


class Completion(_Open):
    """A plain text and how it goes on."""

    prompt: str
    completion: str = Field(min_length=1)


Example = Chat | Completion
PREFERENCE_KEYS = frozenset({"input", "preferred_output", "preferred_completion"})


def parse_line(line: bytes, method: Method) -> tuple[Example, ...]:
    """What the line is trained on: one example, or of a preference the preferred one and the other. InvalidExample."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidExample(f"it is not valid JSON (column {error.colno})") from None
    if not isinstance(value, dict):
        raise InvalidExample("it is not a JSON object")
    try:
        return _preference(value) if method == "dpo" else (_supervised(value),)
    except ValidationError as error:
        raise InvalidExample(_first_problem(error)) from None


def _supervised(value: dict[str, Any]) -> Example:
    if "messages" in value:
        return _checked(Chat.model_validate(value))
    if "prompt" in value:
        return Completion.model_validate(value)
    if PREFERENCE_KEYS & set(value):
        raise InvalidExample("it is a preference example, and those are for method 'dpo'; this job's is 'supervised'")
    raise InvalidExample("it has neither 'messages' nor 'prompt' and 'completion'")


def _preference(value: dict[str, Any]) -> tuple[Chat, Chat]:
    if not PREFERENCE_KEYS & set(value):
        kind = "it is a supervised example" if {"messages", "prompt"} & set(value) else "it is no preference example"
        raise InvalidExample(f"{kind}; method 'dpo' needs 'input', 'preferred_output' and 'non_preferred_output'")
    example = Preference.model_validate(value)
    for name, (answer,) in (("preferred", example.preferred), ("non-preferred", example.non_preferred)):
        if answer.role != "assistant":
            raise InvalidExample(f"the {name} answer must be an assistant message")
        if _empty(answer):
            raise InvalidExample(f"the {name} answer is an assistant message without content or tool_calls")
    _check_answers(example.input)
    return example.answered(example.preferred[0]), example.answered(example.non_preferred[0])


def template_message(message: Message, parts: bool, developer: bool) -> dict[str, Any]:
    """The message as chat templates know it: with `parts` text parts stay a list, else they are joined as vLLM does."""
    fields = message.model_dump(exclude={"weight", "function_call"}, exclude_none=True)
    if message.role == "function":
        fields["role"] = "tool"
    elif message.role == "developer" and not developer:
        fields["role"] = "system"
    if message.function_call is not None:
        fields["tool_calls"] = [{"type": "function", "function": message.function_call.model_dump()}]
    if not fields.get("tool_calls"):
        fields.pop("tool_calls", None)
    if message.content is None:
        fields["content"] = ""
    elif isinstance(message.content, list) and (not parts or fields["role"] == "tool"):
        fields["content"] = "\n".join(part.text for part in message.content)
    return fields


def _checked(chat: Chat) -> Chat:
    if not any(message.role == "assistant" for message in chat.messages):
        raise InvalidExample("it has no assistant message, so there is nothing to learn from it")
    _check_answers(chat)
    return chat


def _check_answers(chat: Chat) -> None:
    for number, message in enumerate(chat.messages):
        if message.role == "assistant" and _empty(message):
            raise InvalidExample(f"messages.{number} is an assistant message without content or tool_calls")


def _empty(message: Message) -> bool:
    return not message.content and not message.tool_calls and not message.function_call


def _first_problem(error: ValidationError) -> str:
    # `input` and `ctx` of a pydantic error quote the value; place, kind and constant message do not.
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("list[", "str")))
    return f"{place}: {problem['msg']}"[:300]
