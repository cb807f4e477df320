"""Requests of a registered adapter: which version answers, how it says so, and what a change of an alias does."""

import asyncio
import json
import threading
import time
from typing import Any

import httpx2
import pytest
from aiohttp import web
from sqlalchemy import text

from deploy.local.postgres import Postgres
from service.settings import ServiceSettings
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.gateway.conftest import BASE, Tenant
from tests.service.gateway.registered import NAME, Registered
from tests.service.gateway.test_freshness import sql
from tests.service.gateway.upstream import Upstream
from tests.service.stage import Stage

PRICE = 1000.0


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    # Whatever is seen here in time is not seen because a cache has run out.
    return service_settings.model_copy(
        update={
            "cache_seconds": 600.0,
            # Its one replica announces itself once for each test.
            "replica_ttl_seconds": 600.0,
            "input_price_per_million_tokens": {BASE: PRICE},
            "output_price_per_million_tokens": {BASE: PRICE},
        }
    )


@pytest.fixture
def bot(service: Service, stage: Stage, upstream: Upstream) -> Registered:
    return Registered.made(service, stage)


def test_every_form_of_a_reference_is_served_and_answers_name_the_version(bot: Registered, upstream: Upstream) -> None:
    bot.point(2, "prod")
    expected = {NAME: 1, f"{NAME}@default": 1, f"{NAME}@prod": 2, f"{NAME}@v1": 1, f"{NAME}@v2": 2}
    for reference, version in expected.items():
        answer = bot.ask(reference)
        name = f"{NAME}@v{version}"
        assert (answer.json()["model"], answer.headers["x-adapter-version"]) == (name, name)
        assert upstream.bodies[-1]["model"] == bot.adapters[version - 1]
    assert [row[0] for row in bot.used()] == [f"{NAME}@v{version}" for version in expected.values()]


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
def test_streams_name_the_version_too(bot: Registered, path: str) -> None:
    given: dict[str, Any] = {"prompt": "Hi"} if path == "completions" else {"input": "Hi"}
    body = {
        "model": NAME,
        "stream": True,
        **({"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else given),
    }
    url = f"{bot.service.url}/v1/{path}"
    answer = httpx2.post(url, json=body, headers=bot.headers, timeout=10)
    assert answer.headers["x-adapter-version"] == f"{NAME}@v1"
    assert f'"model":"{NAME}@v1"' in answer.text
    assert bot.adapters[0] not in answer.text


def test_names_of_models_and_bases_answer_as_before(bot: Registered, tenant: Tenant, service: Service) -> None:
    headers = {"authorization": f"Bearer {tenant.key}"}
    for model in (tenant.model, BASE):
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
        answer = httpx2.post(f"{service.url}/v1/chat/completions", json=body, headers=headers)
        assert answer.json()["model"] == model
        assert "x-adapter-version" not in answer.headers


def test_unknown_foreign_and_deleted_references_are_told_in_the_same_words(
    bot: Registered, service: Service, stage: Stage
) -> None:
    other = Registered(service, stage, bot.project, service.call(stage.key(service.call(stage.project()))), [])
    bot.point(1, "prod")
    for asker, reference in (
        (bot, "nobody"), (bot, f"{NAME}@v3"), (bot, f"{NAME}@staging"), (bot, f"{NAME}@"), (bot, f"{NAME}@@prod"),
        (other, NAME), (other, f"{NAME}@prod"), (other, f"{NAME}@v1"),
    ):  # fmt: skip
        answer = asker.ask(reference)
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert error["code"] == "model_not_found"
        assert error["message"] == f"The model '{reference}' does not exist or you do not have access to it."
    assert bot.answering(f"{NAME}@prod") == 1
    bot.api("DELETE", f"/{NAME}")
    wait_until(lambda: bot.ask(f"{NAME}@prod").status_code == 404, seconds=1.0, what="the deletion is known")
    bot.api("POST", f"/{NAME}/restore")
    assert bot.answering(f"{NAME}@prod") == 1


def test_a_replicas_word_for_the_adapter_does_not_pass(bot: Registered, upstream: Upstream) -> None:
    async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        error = {"message": f"Adapter {body['model']} is broken", "code": "adapter_invalid"}
        return web.json_response({"error": error}, status=422)

    upstream.script = refuse
    answer = bot.ask()
    assert (answer.status_code, answer.json()["error"]["message"]) == (422, f"Adapter {NAME}@v1 is broken")


class TestFlips:
    def test_what_is_asked_after_a_change_gets_the_new_version(self, bot: Registered) -> None:
        bot.point(1, "prod")
        for number in range(30):
            version = 2 - number % 2
            assert bot.answering(f"{NAME}@prod") == 3 - version
            bot.point(version, "prod")
            changed = time.monotonic()
            while bot.answering(f"{NAME}@prod") != version:
                assert time.monotonic() < changed + 1
        bot.api("POST", f"/{NAME}/rollback", alias="prod")
        wait_until(lambda: bot.answering(f"{NAME}@prod") == 2, seconds=1, what="the rollback")

    @pytest.mark.parametrize("stream", [False, True])
    def test_what_is_in_flight_ends_on_the_version_it_began_with(
        self, bot: Registered, upstream: Upstream, stream: bool
    ) -> None:
        go = threading.Event()

        async def wait(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            while body["model"] == bot.adapters[0] and not go.is_set():  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(0.02)
            return await upstream.usual(request, body)

        upstream.script = wait
        answers: list[httpx2.Response] = []
        thread = threading.Thread(target=lambda: answers.append(bot.ask(stream=stream)))
        thread.start()
        try:
            wait_until(lambda: len(upstream.bodies) == 1, what="it is in flight")
            bot.point(2)
            wait_until(lambda: bot.answering() == 2, seconds=1, what="the change")
            assert answers == []
        finally:
            go.set()
            thread.join(10)
        assert answers[0].headers["x-adapter-version"] == f"{NAME}@v1"
        assert f'"model":"{NAME}@v1"' in answers[0].text

    def test_a_change_whose_word_was_lost_is_seen_in_a_second(
        self, bot: Registered, postgres_server: Postgres, database_name: str
    ) -> None:
        assert bot.answering() == 1
        kill = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database_name}'"
        sql(postgres_server, "postgres", kill)
        sql(postgres_server, database_name, f"update adapter_aliases set version = 2 where registered_id = '{bot.id}'")
        wait_until(lambda: bot.answering() == 2, seconds=1, what="the change")

    def test_so_is_one_while_the_listening_connection_says_nothing(
        self, bot: Registered, service: Service, postgres_server: Postgres, database_name: str, deaf: None
    ) -> None:
        assert bot.answering() == 1
        time.sleep(1.2)
        for version in (2, 1):
            change = f"update adapter_aliases set version = {version} where registered_id = '{bot.id}'"
            sql(postgres_server, database_name, change)
            wait_until(lambda version=version: bot.answering() == version, seconds=1, what="the change")

    @pytest.fixture
    def deaf(
        self, service: Service, postgres_server: Postgres, database_name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each new connection to listen on hangs, as where packets are swallowed."""

        async def hang() -> None:
            await asyncio.sleep(20)

        monkeypatch.setattr(service.resources.notifications, "_listen", hang)
        kill = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database_name}'"
        sql(postgres_server, "postgres", kill)


class TestSplits:
    def test_the_same_asker_gets_the_same_version_and_all_others_by_weight(self, bot: Registered) -> None:
        bot.point(1, traffic=[{"version": 1, "weight": 1}, {"version": 2, "weight": 1}])
        askers = [{"user": "a"}, {"safety_identifier": "b"}, {"prompt_cache_key": "c"}, {"user": "d"}, {"user": "e"}]
        first = [bot.answering(**asker) for asker in askers]
        assert [[bot.answering(**asker) for asker in askers] for _ in range(4)] == [first] * 4
        assert {bot.answering(user=f"user-{number}") for number in range(40)} == {1, 2}
        assert {bot.answering() for _ in range(40)} == {1, 2}

    def test_the_end_of_a_split_ends_it_for_everybody(self, bot: Registered) -> None:
        bot.point(1, traffic=[{"version": 1, "weight": 1}, {"version": 2, "weight": 99}])
        wait_until(lambda: bot.answering() == 2, seconds=1, what="the split")
        bot.api("POST", f"/{NAME}/rollback")
        wait_until(lambda: bot.answering() == 1, seconds=1, what="the rollback")
        assert {bot.answering(user=f"user-{number}") for number in range(20)} == {1}


class TestCounts:
    def test_answers_and_failures_of_each_version_are_counted_over_all_processes(
        self, bot: Registered, upstream: Upstream
    ) -> None:
        async def broken(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            if body["model"] == bot.adapters[0]:
                return await upstream.usual(request, body)
            if body.get("stream"):
                head = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
                return await upstream.stream(request, [head], ends=False)
            return web.json_response({"error": {"message": "no", "code": 500}}, status=500)

        upstream.script = broken
        bot.point(1, "prod")
        bot.point(2, "next")
        for _ in range(3):
            assert bot.ask(f"{NAME}@prod").status_code == 200
        assert bot.ask(f"{NAME}@next").status_code == 503
        assert bot.ask(f"{NAME}@next", stream=True).status_code == 200
        assert [bot.counts(1, "prod"), bot.counts(2, "next")] == [(3, 0), (2, 2)]
        bot.ask(f"{NAME}@prod")
        assert bot.counts(1, "prod") == (4, 0)

    def test_only_what_came_through_an_alias_counts_for_it(self, bot: Registered, upstream: Upstream) -> None:
        async def broken(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            return web.json_response({"error": {"message": "no", "code": 500}}, status=500)

        bot.point(1, "prod")
        upstream.script = broken
        for reference in (f"{NAME}@v1", f"{NAME}@v1", NAME):
            assert bot.ask(reference).status_code == 503
        assert (bot.counts(1, "prod"), bot.counts(1)) == ((0, 0), (1, 1))

    def test_each_revision_of_an_alias_counts_anew(self, bot: Registered) -> None:
        bot.ask()
        assert bot.counts(1) == (1, 0)
        bot.point(1, traffic=[{"version": 1, "weight": 3}, {"version": 2, "weight": 1}])
        wait_until(lambda: bot.answering() == 2, what="the split is known")
        told = bot.traffic()
        assert (told["adapter"], told["alias"], told["revision"]) == (NAME, "default", 2)
        assert told["since"] == bot.api("GET", f"/{NAME}/aliases/default")["updated_at"]
        versions = [(each["model"], each["shadow"], each["fraction"]) for each in told["versions"]]
        assert versions == [(f"{NAME}@v1", False, 0.75), (f"{NAME}@v2", False, 0.25)]
        assert told["versions"][1]["requests"] == 1

    def test_tokens_and_times_are_told_where_they_are_known(self, bot: Registered) -> None:
        bot.point(1, "prod")
        (nothing,) = bot.traffic("prod")["versions"]
        assert (nothing["requests"], nothing["error_rate"], nothing["first_token_ms"], nothing["answer_ms"]) == (
            0, None, None, None,
        )  # fmt: skip
        usage = bot.ask(f"{NAME}@prod").json()["usage"]
        (told,) = bot.traffic("prod")["versions"]
        assert (told["input_tokens"], told["output_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
        assert told["answer_ms"] > 0
        assert told["first_token_ms"] is None
        bot.ask(f"{NAME}@prod", stream=True)
        (told,) = bot.traffic("prod")["versions"]
        assert told["first_token_ms"] > 0
        assert (told["requests"], told["error_rate"]) == (2, 0.0)
        assert told["output_tokens"] > usage["completion_tokens"]

    def test_what_is_a_day_old_becomes_one_row_of_the_present_revision(
        self, bot: Registered, stage: Stage, service: Service
    ) -> None:
        bot.point(1, "prod")
        bot.ask(f"{NAME}@prod")
        bot.ask()
        before = bot.traffic("prod")["versions"], bot.traffic()["versions"]
        older = "update alias_counts set bucket = bucket - interval '2 days' where bucket > 'epoch' returning version"
        rows = "select alias from alias_counts where project_id = :project and bucket = 'epoch' order by alias"
        for times in (1, 2):
            service.call(stage.rows(older))
            service.call(service.app.state.gateway.outcomes.sweep())
            assert [row[0] for row in service.call(stage.rows(rows, project=bot.project))] == ["default", "prod"]
            assert bot.counts(1, "prod") == (times, 0)
            if times == 1:
                assert (bot.traffic("prod")["versions"], bot.traffic()["versions"]) == before
                bot.ask(f"{NAME}@prod")
                bot.counts(1, "prod")
        bot.point(2, "prod")
        service.call(service.app.state.gateway.outcomes.sweep())
        assert [row[0] for row in service.call(stage.rows(rows, project=bot.project))] == ["default"]

    def test_what_is_no_versions_fault_is_not_held_against_it(self, bot: Registered, upstream: Upstream) -> None:
        def refusing(code: str | int, status: int) -> None:
            async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
                return web.json_response({"error": {"message": "no", "code": code}}, status=status)

            upstream.script = refuse

        for code, status in ((400, 400), (429, 429), ("no_capacity", 503), ("adapter_storage_unavailable", 503)):
            refusing(code, status)
            assert bot.ask().status_code == status
        assert bot.counts(1) == (0, 0)
        refusing("adapter_invalid", 422)
        bot.ask()
        assert bot.counts(1) == (1, 1)

    def test_tenants_see_counts_of_their_own_versions_alone(
        self, bot: Registered, stage: Stage, service: Service
    ) -> None:
        bot.ask()
        assert bot.counts(1) == (1, 0)
        found = Registered(service, stage, service.call(stage.project()), "", [])

        async def seen(project: Any) -> int:
            async with stage.resources.database.tenant(project) as session:
                return await session.scalar(text("select count(*) from alias_counts"))

        assert service.call(seen(bot.project)) > 0
        assert service.call(seen(found.project)) == 0


def test_what_a_version_used_is_priced_as_its_base(bot: Registered, admin: httpx2.Client) -> None:
    bot.ask()
    assert [row[:2] for row in bot.used()] == [(f"{NAME}@v1", BASE)]
    start = int(time.time()) - 60
    parameters = {"start_time": start, "project_ids[]": bot.project, "group_by[]": "line_item"}
    found = admin.get("/organization/costs", params=parameters).json()
    amounts = {
        result["line_item"]: result["amount"]["value"] for bucket in found["data"] for result in bucket["results"]
    }
    assert amounts.keys() == {f"{BASE}, input_tokens", f"{BASE}, output_tokens", "file storage"}
    assert amounts[f"{BASE}, input_tokens"] > 0


def test_embeddings_know_references(bot: Registered) -> None:
    url = f"{bot.service.url}/v1/embeddings"
    for model, code in ((NAME, "model_not_supported"), ("nobody", "model_not_found")):
        answer = httpx2.post(url, json={"model": model, "input": "x"}, headers=bot.headers)
        assert json.loads(answer.text)["error"]["code"] == code
