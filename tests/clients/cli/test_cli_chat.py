"""Talking to models and comparing them; the replica behind the service answers with vLLM's bytes."""

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

from service.settings import ServiceSettings
from tests.clients.cli.conftest import Open, Shell
from tests.clients.conftest import Tenant
from tests.conftest import free_port
from tests.service.conftest import Service
from tests.service.gateway.captured import CHAT_WHOLE
from tests.service.gateway.conftest import beat
from tests.service.gateway.upstream import Upstream, endless, named

ANSWER = 'He said "usage":{}!'


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    # The one replica announces itself once for each test.
    return service_settings.model_copy(update={"replica_ttl_seconds": 600.0})


@pytest.fixture(scope="module")
def running(service: Service) -> Iterator[Upstream]:
    made = Upstream(free_port())
    made.start()
    yield made
    made.stop()


@pytest.fixture
def upstream(service: Service, running: Upstream) -> Upstream:
    running.reset()
    beat(service, running)
    return running


def test_one_question(shell: Shell, upstream: Upstream) -> None:
    ran = shell.ok("chat", "weft-tiny", "Who are you?", "--system", "Be short.", "--temperature", "0", "--seed", "7")
    assert (ran.out, ran.err) == (ANSWER + "\n", "")
    body = upstream.bodies[-1]
    assert body["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Who are you?"},
    ]
    assert (body["temperature"], body["seed"], body["stream"]) == (0, 7, True)


def test_a_question_from_a_pipe(shell: Shell, upstream: Upstream) -> None:
    assert shell.ok("chat", "weft-tiny", "Shorten this.", given="A long text.\n").out == ANSWER + "\n"
    assert upstream.bodies[-1]["messages"] == [{"role": "user", "content": "Shorten this.\n\nA long text."}]
    answer = shell.ok("chat", "weft-tiny", "--json", given="Hi").json
    assert (answer["object"], answer["model"]) == ("chat.completion", "weft-tiny")


def test_an_unknown_model(shell: Shell, upstream: Upstream) -> None:
    ran = shell.run("chat", "nobody@prod", "Hi")
    assert ran.status == 3
    assert "request req" in ran.err


def test_a_conversation_in_a_terminal(shell: Shell, upstream: Upstream, opened: Open) -> None:
    terminal = opened(shell, "chat", "weft-tiny")
    for turn, question in enumerate(("First?", "Second?"), 1):
        terminal.until("> " if turn == 1 else f"> First?\n{ANSWER}\n> ")
        terminal.type(question + "\n")
        terminal.until(f"{question}\n{ANSWER}")
    terminal.until(f"Second?\n{ANSWER}\n> ")
    asked = [message["content"] for message in upstream.bodies[-1]["messages"]]
    assert asked == ["First?", ANSWER, "Second?"]
    terminal.type("/reset\n")
    terminal.type("Third?\n")
    terminal.until(f"Third?\n{ANSWER}\n> ")
    assert [message["content"] for message in upstream.bodies[-1]["messages"]] == ["Third?"]
    terminal.type("\x04")
    assert terminal.end() == 0


def test_an_answer_is_shown_as_it_comes_and_can_be_stopped(shell: Shell, upstream: Upstream, opened: Open) -> None:
    async def never_ending(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await upstream.stream(request, endless(body["model"], content="la "), pause=0.02)

    upstream.script = never_ending
    terminal = opened(shell, "chat", "weft-tiny")
    terminal.until("> ")
    terminal.type("Sing!\n")
    terminal.until("la la la")
    terminal.interrupt()
    terminal.until("\n> ")
    upstream.script = None
    terminal.type("Enough?\n")
    terminal.until(f"{ANSWER}\n> ")
    assert terminal.leave() == 130
    assert "Traceback" not in terminal.screen.text


def test_an_answer_cannot_take_over_the_terminal(shell: Shell, upstream: Upstream, opened: Open) -> None:
    async def hostile(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        parts = itertools.islice(endless(body["model"], content=r"\u001b[2Jowned"), 3)
        return await upstream.stream(request, [*parts, b"data: [DONE]\n\n"])

    upstream.script = hostile
    terminal = opened(shell, "chat", "weft-tiny", "Hi")
    assert terminal.end() == 0
    assert terminal.screen.text == "�[2Jowned" * 2


def test_a_busy_service_does_not_end_a_conversation(shell: Shell, upstream: Upstream, opened: Open) -> None:
    async def busy(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "Too many.", "type": "x", "code": "busy"}}, status=503)

    upstream.script = busy
    terminal = opened(shell, "chat", "weft-tiny")
    terminal.until("> ")
    terminal.type("Hi\n")
    terminal.until("weft: ")
    upstream.script = None
    terminal.type("Hi again\n")
    terminal.until(ANSWER)
    assert [message["content"] for message in upstream.bodies[-1]["messages"]] == ["Hi again"]


def test_a_refused_question_leaves_a_conversation_as_it_was(shell: Shell, upstream: Upstream, opened: Open) -> None:
    async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        error = {"message": "Too long by far.", "type": "invalid_request_error", "code": "context_length_exceeded"}
        return web.json_response({"error": error}, status=400)

    terminal = opened(shell, "chat", "weft-tiny")
    terminal.until("> ")
    terminal.type("First?\n")
    terminal.until(f"First?\n{ANSWER}\n> ")
    upstream.script = refuse
    terminal.type("Too much?\n")
    terminal.until("weft: ")
    upstream.script = None
    terminal.type("Second?\n")
    terminal.until(f"Second?\n{ANSWER}\n> ")
    assert [message["content"] for message in upstream.bodies[-1]["messages"]] == ["First?", ANSWER, "Second?"]
    terminal.type("\x04")
    assert terminal.end() == 0


def test_a_conversation_with_nobody_ends(shell: Shell, upstream: Upstream, opened: Open) -> None:
    for model, variables, status in (("nobody@prod", {}, 3), ("weft-tiny", {"WEFT_API_KEY": "sk-weft-wrong"}, 4)):
        terminal = opened(shell, "chat", model, **variables)
        terminal.until("> ")
        terminal.type("Hi\n")
        assert terminal.end() == status
        assert "request req" in terminal.screen.text


@pytest.fixture
def two_models(shell: Shell, upstream: Upstream, tenant: Tenant) -> Callable[[], None]:
    """A replica that answers what it was asked; loudly where a system message is."""

    async def echo(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        said = body["messages"][-1]["content"]
        await asyncio.sleep(0)
        whole = json.loads(named(CHAT_WHOLE, body["model"]))
        whole["choices"][0]["message"]["content"] = said.upper() if "two" in said else said
        return web.json_response(whole)

    upstream.script = echo
    return lambda: None


def test_two_models_side_by_side(shell: Shell, two_models: object, opened: Open) -> None:
    terminal = opened(shell, "adapters", "compare", "weft-tiny", "weft-tiny", "-p", "number one", "-p", "number two")
    assert terminal.end() == 0
    lines = [line.split("  ") for line in terminal.screen.text.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["PROMPT", "weft-tiny", "weft-tiny"] or cells[1] == ["PROMPT", "weft-tiny", "weft-tiny"]
    assert ["number two", "NUMBER TWO", "NUMBER TWO"] in cells
    assert "2 of 2 answers are the same" in terminal.screen.text


def test_a_comparison_with_what_was_expected(shell: Shell, two_models: object, upstream: Upstream) -> None:
    lines = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}
        for text in ("number one", "number two")
    ]
    given = "\n".join(map(json.dumps, lines))
    ran = shell.ok("adapters", "compare", "weft-tiny", "weft-tiny", "--system", "Echo.", given=given)
    assert ran.cells == [["number one"] * 4, ["number two", "NUMBER TWO", "NUMBER TWO", "number two"]]
    assert "as expected: weft-tiny 1, weft-tiny 1" in ran.err
    assert all(body["temperature"] == 0 for body in upstream.bodies)
    found = shell.ok("adapters", "compare", "weft-tiny", "weft-tiny", "-p", "one", "--json").json
    assert (found[0]["same"], found[0]["answers"][0]) == (True, {"model": "weft-tiny", "answer": "one"})
    assert shell.run("adapters", "compare", "weft-tiny", "weft-tiny").status == 2
