"""A prompt under an `Idempotency-Key` is answered once: what is kept of its answer, for how long, and what is not."""

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from aiohttp import web

from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.gateway.captured import CHAT_WHOLE
from tests.service.gateway.conftest import BASE, Ledger, Tenant, chat
from tests.service.gateway.upstream import Upstream, endless, named
from tests.service.stage import Stage

PATHS = {
    "/chat/completions": chat(BASE),
    "/completions": {"model": BASE, "prompt": "Hi"},
    "/responses": {"model": BASE, "input": "Hi"},
}
WORD = b"He said"


class Kept:
    """The rows of recorded answers of one tenant."""

    def __init__(self, service: Service, stage: Stage, project: str) -> None:
        self._service, self._stage, self._project = service, stage, project

    def rows(self) -> list[tuple[int, bytes]]:
        query = "select status, answer from recorded_answers where project_id = :project and expires_at > now()"
        return [tuple(row) for row in self._service.call(self._stage.rows(query, project=self._project))]

    def age(self, interval: str) -> None:
        query = (
            "update recorded_answers set expires_at = expires_at - cast(cast(:interval as text) as interval)"
            " where project_id = :project returning 1"
        )
        self._service.call(self._stage.rows(query, interval=interval, project=self._project))


@pytest.fixture
def kept(service: Service, stage: Stage, tenant: Tenant) -> Iterator[Kept]:
    rows = Kept(service, stage, tenant.project)
    rows.age("1 day")
    yield rows
    rows.age("1 day")


def ask(http: httpx2.Client, key: str, path: str = "/chat/completions", **fields: Any) -> httpx2.Response:
    return http.post(path, json={**PATHS[path], **fields}, headers={"idempotency-key": key})


def refusal(answer: httpx2.Response) -> tuple[int, str, str]:
    return answer.status_code, answer.json()["error"]["code"], answer.headers["x-should-retry"]


class Gate:
    """A replica that answers when it is told to."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self.open = threading.Event()
        upstream.script = self._answer

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.to_thread(self.open.wait, 20)
        return await self._upstream.usual(request, body)


@pytest.mark.parametrize("path", PATHS)
def test_the_same_key_gives_the_same_answer_for_which_the_model_is_asked_once(
    upstream: Upstream, http: httpx2.Client, kept: Kept, ledger: Ledger, tenant: Tenant, path: str
) -> None:
    booked = len(ledger.of(tenant))
    first, second = ask(http, "one", path), ask(http, "one", path)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.content == second.content
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["x-request-id"] != first.headers["x-request-id"]
    assert len(upstream.bodies) == 1
    assert len(ledger.of(tenant)) == booked + 1
    assert ask(http, "two", path).status_code == 200
    assert len(upstream.bodies) == 2


def test_an_answer_lies_sealed_and_for_ten_minutes(upstream: Upstream, http: httpx2.Client, kept: Kept) -> None:
    assert WORD in ask(http, "sealed").content
    ((status, answer),) = kept.rows()
    assert status == 200
    assert WORD not in answer
    kept.age("9 minutes")
    assert ask(http, "sealed").headers["idempotent-replayed"] == "true"
    kept.age("1 minute")
    assert "idempotent-replayed" not in ask(http, "sealed").headers


def test_nothing_is_kept_without_a_key(upstream: Upstream, http: httpx2.Client, kept: Kept) -> None:
    assert http.post("/chat/completions", json=chat(BASE), headers={"x-stainless-retry-count": "1"}).status_code == 200
    assert kept.rows() == []


def test_who_asks_meanwhile_is_told_to_come_again(upstream: Upstream, http: httpx2.Client, kept: Kept) -> None:
    gate = Gate(upstream)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, http, "crowd")
        wait_until(lambda: len(upstream.bodies) == 1, what="the replica is asked")
        assert refusal(ask(http, "crowd")) == (409, "idempotency_in_flight", "true")
        gate.open.set()
        assert ask_until_answered(http, "crowd").content == first.result(10).content
    assert len(upstream.bodies) == 1


def ask_until_answered(http: httpx2.Client, key: str) -> httpx2.Response:
    answers: list[httpx2.Response] = []

    def answered() -> bool:
        answers.append(ask(http, key))
        return answers[-1].status_code != 409

    wait_until(answered, what="an answer")
    return answers[-1]


def test_another_prompt_under_the_key_is_refused(upstream: Upstream, http: httpx2.Client, kept: Kept) -> None:
    ask(http, "mine")
    assert refusal(ask(http, "mine", temperature=0.5)) == (422, "idempotency_key_reused", "false")
    assert len(upstream.bodies) == 1


@pytest.mark.parametrize("fault", [{"top_p": "x"}, {"model": "none"}, {"unknown": 1}])
def test_what_was_refused_is_asked_anew(
    upstream: Upstream, http: httpx2.Client, kept: Kept, fault: dict[str, object]
) -> None:
    async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no", "type": "BadRequestError", "code": 400}}, status=400)

    upstream.script = refuse
    assert ask(http, "again", **fault).status_code in (400, 404)
    assert kept.rows() == []
    upstream.script = None
    assert ask(http, "again").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_what_its_client_left_is_asked_anew(
    service: Service, upstream: Upstream, http: httpx2.Client, kept: Kept, stream: bool
) -> None:
    async def talk(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body.get("stream"):
            return await upstream.stream(request, endless(body["model"]), 0.01)
        await asyncio.sleep(30)
        return await upstream.usual(request, body)

    upstream.script = talk
    headers = {**http.headers, "idempotency-key": "left"}
    with httpx2.Client(base_url=http.base_url, headers=headers, timeout=0.5) as leaver:
        if stream:
            with leaver.stream("POST", "/chat/completions", json=chat(BASE, stream=True)) as answer:
                assert next(answer.iter_bytes())
        else:
            with pytest.raises(httpx2.ReadTimeout):
                leaver.post("/chat/completions", json=chat(BASE))
    wait_until(lambda: upstream.aborted == 1, what="the replica is left too")
    wait_until(lambda: kept.rows() == [], what="the key is free")
    upstream.script = None
    assert ask(http, "left", stream=stream).status_code == 200


def test_a_stream_is_not_given_again(upstream: Upstream, http: httpx2.Client, kept: Kept) -> None:
    gate = Gate(upstream)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, http, "stream", stream=True)
        wait_until(lambda: len(upstream.bodies) == 1, what="the replica is asked")
        assert refusal(ask(http, "stream", stream=True)) == (409, "idempotency_in_flight", "true")
        gate.open.set()
        assert first.result(10).text.endswith("data: [DONE]\n\n")
    wait_until(lambda: kept.rows() == [(200, b"")], what="the stream is known to have been")
    assert refusal(ask(http, "stream", stream=True)) == (409, "idempotency_answer_not_kept", "false")
    assert len(upstream.bodies) == 1


def test_a_long_answer_is_not_given_again(upstream: Upstream, http: httpx2.Client, kept: Kept) -> None:
    async def long(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        answer = json.loads(named(CHAT_WHOLE, body["model"]))
        answer["choices"][0]["message"]["content"] = "x" * (1 << 20)
        return web.json_response(answer)

    upstream.script = long
    assert len(ask(http, "long").content) > 1 << 20
    wait_until(lambda: kept.rows() == [(200, b"")], what="the answer is known to have been")
    assert refusal(ask(http, "long")) == (409, "idempotency_answer_not_kept", "false")


def test_a_key_that_is_none_is_refused(upstream: Upstream, http: httpx2.Client) -> None:
    answer = ask(http, "x" * 256)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_idempotency_key")
    assert upstream.bodies == []
