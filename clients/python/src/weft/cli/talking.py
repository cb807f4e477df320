"""A conversation with a model, shown as it is written."""

import sys
from contextlib import closing
from typing import Any

from httpx2 import TransportError
from openai import OpenAIError
from openai.types.chat import ChatCompletion

from weft.cli.commands import Session
from weft.cli.failures import AUTHENTICATION, NOT_FOUND, Failure, report
from weft.cli.output import in_terminal, plain, say, show_json, visible

PROMPT = "> "
LEAVING = (AUTHENTICATION, NOT_FOUND)
"""After these no other question would be answered either."""


class Conversation:
    def __init__(self, session: Session, model: str, system: str | None, sampling: dict[str, Any]) -> None:
        self.session, self.model, self._sampling = session, model, sampling
        self._first: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self.messages = [*self._first]
        self.answering = model
        """The version that answered last; an alias may come to mean another one."""

    def reset(self) -> None:
        self.messages = [*self._first]

    def whole(self, question: str) -> ChatCompletion:
        """The answer as the service sent it."""
        messages: Any = [*self.messages, {"role": "user", "content": question}]
        # Which of the overloads it is depends on what was asked for on the command line.
        create: Any = self.session.client.chat.completions.create
        answer: ChatCompletion = create(model=self.model, messages=messages, **self._sampling)
        return answer

    def streamed(self, question: str) -> bool:
        """Writes the answer as it comes; False where Ctrl-C has stopped it. A question without an answer is dropped."""
        messages: Any = [*self.messages, {"role": "user", "content": question}]
        pieces: list[str] = []
        ended = True
        stream = self.session.client.chat.completions.create(
            model=self.model, messages=messages, stream=True, **self._sampling
        )
        with closing(stream):
            try:
                for chunk in stream:
                    self.answering = chunk.model or self.answering
                    pieces += [choice.delta.content or "" for choice in chunk.choices]
                    _write(pieces[-1] if chunk.choices else "")
            except KeyboardInterrupt:
                ended = False
            finally:
                _write("\n")
        self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
        return ended


def asked_once(conversation: Conversation, question: str) -> None:
    if conversation.session.json:
        show_json(plain(conversation.whole(question)))
    elif not conversation.streamed(question):
        raise KeyboardInterrupt


def converse(conversation: Conversation) -> None:
    """Until the end of the input. An error is said and does not end it while another question may be answered."""
    try:
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]  # line editing for `input`
    except ImportError:
        say(conversation.session, "This Python has no readline; lines cannot be edited.")
    shown = conversation.model
    while (question := _read()) is not None:
        if question == "/reset":
            conversation.reset()
        elif question:
            try:
                conversation.streamed(question)
            except (OpenAIError, TransportError) as error:
                failure = Failure.of(error)
                if failure.exit_status in LEAVING:
                    raise
                report(failure, as_json=False)
            if conversation.answering != shown:
                shown = conversation.answering
                say(conversation.session, f"(answered by {shown})")


def _read() -> str | None:
    try:
        return input(PROMPT).strip()
    except EOFError:
        sys.stdout.write("\n")
        return None


def _write(text: str) -> None:
    # A pipe gets what the model wrote; a terminal only what cannot take it over.
    sys.stdout.write(visible(text) if in_terminal() else text)
    sys.stdout.flush()
