"""Copies of requests for a shadowing version: nobody sees them, nobody waits for them, and they are booked apart."""

import asyncio
import time
from typing import Any

import pytest
from aiohttp import web

from service.errors import Unavailable
from service.gateway.exchange import Answered
from service.gateway.fields import CHAT
from service.gateway.request import CompletionRequest, parse
from service.gateway.resolve import Shadow, Target
from service.gateway.shadows import Shadows
from service.settings import ServiceSettings
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.gateway.registered import NAME, Registered
from tests.service.gateway.upstream import Upstream
from tests.service.stage import Stage

MOST = 4


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    # Its one replica announces itself once for each test.
    return service_settings.model_copy(update={"max_shadow_requests": MOST, "replica_ttl_seconds": 600.0})


@pytest.fixture
def bot(service: Service, stage: Stage, upstream: Upstream) -> Registered:
    """Version 2 shadows all requests of version 1."""
    made = Registered.made(service, stage)
    made.point(1, shadow={"version": 2, "fraction": 1.0})
    assert made.answering() == 1
    wait_until(lambda: bool(copies(made, upstream)) and idle(made), what="the first copy is over")
    return made


def idle(bot: Registered) -> bool:
    return not bot.service.app.state.gateway.shadows._tasks


def copies(bot: Registered, upstream: Upstream) -> list[dict[str, Any]]:
    return [body for body in upstream.bodies if body["model"] == bot.adapters[1]]


@pytest.mark.parametrize("stream", [False, True])
def test_the_shadow_is_asked_the_same_and_its_answer_is_dropped(
    bot: Registered, upstream: Upstream, stream: bool
) -> None:
    before = len(copies(bot, upstream))
    answer = bot.ask(stream=stream, temperature=0.5)
    assert answer.headers["x-adapter-version"] == f"{NAME}@v1"
    assert f"{NAME}@v2" not in answer.text
    wait_until(lambda: len(copies(bot, upstream)) == before + 1, what="the copy")
    copy, real = copies(bot, upstream)[-1], next(b for b in reversed(upstream.bodies) if b["model"] == bot.adapters[0])
    # Nobody reads it as it comes.
    ignored = {"model", "stream", "stream_options"}
    assert not copy.get("stream")
    assert {k: v for k, v in copy.items() if k not in ignored} == {k: v for k, v in real.items() if k not in ignored}


def test_copies_are_booked_apart_and_count_against_no_budget(bot: Registered, stage: Stage, service: Service) -> None:
    bot.ask()
    wait_until(lambda: len([row for row in bot.used() if row[3]]) == 2, what="both copies are booked")
    rows = bot.used()
    assert {(row[0], row[2] is None) for row in rows if row[3]} == {(f"{NAME}@v2", True)}
    assert {(row[0], row[2] is None) for row in rows if not row[3]} == {(f"{NAME}@v1", False)}
    told, copied = bot.traffic()["versions"]
    assert [(each["version"], each["shadow"], each["fraction"], each["requests"]) for each in (told, copied)] == [
        (1, False, 1.0, 2), (2, True, 1.0, 2),
    ]  # fmt: skip
    assert copied["output_tokens"] > 0
    assert copied["answer_ms"] > 0


def test_a_shadow_that_hangs_or_fails_is_not_noticed_and_few_are_asked_at_once(
    bot: Registered, upstream: Upstream
) -> None:
    async def script(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["model"] == bot.adapters[1]:
            if len(copies(bot, upstream)) % 2:
                return web.json_response({"error": {"message": "no", "code": 500}}, status=500)
            await asyncio.sleep(60)
        return await upstream.usual(request, body)

    upstream.script = script
    waits = []
    for _ in range(20):
        began = time.monotonic()
        assert bot.answering() == 1
        waits.append(time.monotonic() - began)
    assert max(waits) < 5
    # Half of the places, for one project; a copy on which a replica failed is not put to another.
    tasks = bot.service.app.state.gateway.shadows._tasks
    wait_until(lambda: len(tasks) == MOST // 2, what="only the hanging ones are left")
    assert bot.counts(2, shadow=True)[1] >= 1
    bot.service.call(bot.service.app.state.gateway.shadows.close())
    assert idle(bot)


def test_requests_of_the_shadow_itself_and_of_other_references_are_not_copied(
    bot: Registered, upstream: Upstream
) -> None:
    before = len(copies(bot, upstream))
    assert [bot.answering(f"{NAME}@v1") for _ in range(3)] == [1, 1, 1]
    bot.point(2)
    wait_until(lambda: bot.answering() == 2, seconds=1, what="the change")
    asked = len(copies(bot, upstream))
    bot.ask()
    time.sleep(0.2)
    assert asked >= before
    assert len(copies(bot, upstream)) == asked + 1


class Spool:
    accepting = True

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def append(self, entry: Any) -> None:
        self.entries.append(entry)


class TestRoom:
    """Without a service: which copies are begun at all."""

    @pytest.fixture(autouse=True)
    def parts(self) -> None:
        self.spool, self.begun, self.waited, self.busy = Spool(), 0, 0.0, False
        self.shadow = Shadow(Target("bot@v2", "base", "a" * 64), 1.0)
        self.go = asyncio.Event()
        ask: Any = self.ask
        spool: Any = self.spool
        self.shadows = Shadows(ask, spool, MOST, lambda: self.busy)

    async def ask(self, path: str, project: str, request: CompletionRequest, target: Target) -> Answered:
        self.begun += 1
        await self.go.wait()
        if self.waited < 0:
            raise Unavailable("no")
        return Answered("req", b"{}", None, self.waited)  # type: ignore[arg-type]

    def offer(self, project: str, fraction: float = 1.0) -> None:
        request = parse(b'{"model":"bot","messages":[]}', CHAT)
        self.shadows.offer("/v1/chat/completions", project, request, Shadow(self.shadow.target, fraction))  # type: ignore[arg-type]

    async def test_a_project_has_half_of_the_places_and_gets_them_back(self) -> None:
        for project in ("a", "a", "a", "b", "c", "d"):
            self.offer(project)
        await asyncio.sleep(0)
        assert self.begun == MOST
        self.waited = -1
        self.go.set()
        await asyncio.sleep(0.05)
        self.offer("a")
        await asyncio.sleep(0)
        assert self.begun == MOST + 1
        await self.shadows.close()

    async def test_none_is_begun_while_there_is_much_else_to_do(self) -> None:
        self.busy = True
        self.offer("a")
        self.busy, self.spool.accepting = False, False  # type: ignore[misc]
        self.offer("a")
        await asyncio.sleep(0)
        assert self.begun == 0

    async def test_a_fraction_is_copied(self) -> None:
        self.waited = -1
        self.go.set()
        for _ in range(400):
            self.offer("a", 0.25)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert 50 < self.begun < 150
        await self.shadows.close()

    async def test_all_end_with_the_process(self) -> None:
        self.offer("a")
        await asyncio.sleep(0)
        await self.shadows.close()
        assert self.spool.entries == []
        assert not self.shadows._tasks
