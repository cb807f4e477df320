"""Two at once, and dying half way: what is told has happened, all of it, and nothing else has."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from service.contracts.ids import AdapterId
from service.registry import promote, versions
from service.registry.versions import Source
from tests.service.conftest import Service
from tests.service.registry.conftest import Owner
from tests.service.stage import Stage

AT_ONCE = 8


def at_once(ask: Any, count: int = AT_ONCE) -> list[Any]:
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(ask, range(count)))


def test_of_many_promotions_from_one_revision_one_wins(owner: Owner) -> None:
    (model,) = owner.registered("bot")
    for _ in range(AT_ONCE):
        owner.ask("POST", "/adapters/bot/versions", json={"source": {"type": "model", "model": model}})
    for revision in range(3):

        def put(number: int, revision: int = revision) -> Any:
            body = {"version": number + 2, "if_revision": revision}
            return owner.http.put("/adapters/bot/aliases/prod", json=body)

        answers = at_once(put)
        assert Counter(answer.status_code for answer in answers) == {200: 1, 409: AT_ONCE - 1}
        lost = {answer.json()["error"]["code"] for answer in answers if answer.status_code == 409}
        assert lost == {"revision_mismatch"}
        (won,) = (answer.json() for answer in answers if answer.status_code == 200)
        assert owner.served("bot@prod") == {won["version"]: 1.0}
    changes = owner.ask("GET", "/adapters/bot/history", params={"alias": "prod"})["data"]
    assert [change["revision"] for change in changes] == [3, 2, 1]


def test_versions_added_at_once_get_a_number_each(owner: Owner) -> None:
    _, model = owner.trained()
    owner.ask("POST", "/adapters", json={"name": "bot"})
    source = {"source": {"type": "model", "model": model}}
    added = at_once(lambda _: owner.ask("POST", "/adapters/bot/versions", json=source)["version"])
    assert sorted(added) == list(range(1, AT_ONCE + 1))
    assert owner.served("bot") == {1: 1.0}
    assert len(owner.ask("GET", "/adapters/bot/history")["data"]) == 1


def test_a_name_is_made_once(owner: Owner) -> None:
    answers = at_once(lambda _: owner.http.post("/adapters", json={"name": "bot"}).status_code)
    assert Counter(answers) == {200: 1, 409: AT_ONCE - 1}


def test_a_version_is_promoted_or_deleted_and_never_both(owner: Owner) -> None:
    (model,) = owner.registered("bot")
    source = {"source": {"type": "model", "model": model}}
    for _ in range(6):
        number = owner.ask("POST", "/adapters/bot/versions", json=source)["version"]

        def move(which: int, number: int = number) -> int:
            if which:
                return owner.http.put("/adapters/bot/aliases/prod", json={"version": number}).status_code
            return owner.http.delete(f"/adapters/bot/versions/{number}").status_code

        deleted, promoted = at_once(move, 2)
        assert (deleted, promoted) in {(200, 404), (409, 200)}
        served = owner.served("bot@prod")
        assert (served == {number: 1.0}) == (promoted == 200)


def test_an_artifact_ends_only_when_nothing_uses_it_whoever_is_first(owner: Owner) -> None:
    """Its last name deleted while it becomes a version: it is either refused or keeps its files."""
    owner.ask("POST", "/adapters", json={"name": "bot"})
    for _ in range(4):
        _, model = owner.trained()
        body = {"source": {"type": "model", "model": model}}

        def move(which: int, model: str = model, body: Any = body) -> Any:
            if which:
                return owner.http.delete(f"/models/{model}")
            return owner.http.post("/adapters/bot/versions", json=body)

        added, removed = at_once(move, 2)
        assert removed.status_code == 200
        if added.status_code == 200:
            version = added.json()
            assert owner.served(version["model"]) == {version["version"]: 1.0}
        else:
            assert added.json()["error"]["code"] in {"model_not_found", "adapter_files_deleted"}


def test_jobs_that_end_at_once_for_one_new_adapter(service: Service, stage: Stage, owner: Owner) -> None:
    service.call(stage.jobs(owner.project, 2, adapter="bot"))
    leases = [service.call(stage.claimed()) for _ in range(2)]

    async def both() -> None:
        await asyncio.gather(*(stage.succeed(lease) for lease in leases))

    service.call(both())
    found = owner.ask("GET", "/adapters/bot/versions")["data"]
    assert [version["version"] for version in found] == [2, 1]
    assert {version["source"]["id"] for version in found} == {lease.spec.job_id for lease in leases}
    assert owner.served("bot") == {1: 1.0}


def test_a_transaction_that_dies_leaves_nothing(service: Service, stage: Stage, owner: Owner) -> None:
    """The connection is cut after everything was written and before the commit."""
    owner.registered("bot", 2)
    before = [owner.ask("GET", path) for path in ("/adapters/bot", "/adapters/bot/versions", "/adapters/bot/history")]
    artifact = owner.ask("GET", "/adapters/bot/versions/1")["sha256"]

    async def die() -> None:
        async with service.resources.database.tenant(owner.project) as session:
            await versions.add(
                session,
                owner.project,
                "bot",
                Source("model", "bot@v1"),
                artifact=AdapterId(artifact),
                provenance={},
                create_missing=False,
            )
            await promote.promote(
                session, owner.project, "bot", "default", 3, if_revision=None, actor="test", reason=None
            )
            await session.execute(text("select pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(ConnectionError):
        service.call(die())
    after = [owner.ask("GET", path) for path in ("/adapters/bot", "/adapters/bot/versions", "/adapters/bot/history")]
    assert after == before
    assert owner.served("bot") == {1: 1.0}
