"""Registering replicas over HTTP, the orders they get, and the list that the gateway keeps of them."""

import itertools
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from sqlalchemy import event

from service.adapters.registry import Trained, publish, retire
from service.contracts.ids import ProjectId, fine_tuned_model_name
from service.contracts.job import JobSpec
from service.contracts.manifest import adapter_id_of
from service.contracts.replica import MOST_ADAPTERS, MOST_STORED, ReplicaOrders
from service.db import DatabaseUnavailable
from service.replicas.membership import Membership, Replica
from service.resources import Resources
from service.settings import ServiceSettings
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.stage import Stage, adapter_manifest


@pytest.fixture(scope="module")
def internal(service: Service) -> Iterator[httpx2.Client]:
    token = service.settings.replica_token.get_secret_value()
    with httpx2.Client(base_url=f"{service.url}/internal", headers={"authorization": f"Bearer {token}"}) as client:
        yield client


@pytest.fixture(scope="module")
def membership(service: Service) -> Membership:
    return service.app.state.gateway.membership


def beat(service: Service, **changes: Any) -> dict[str, Any]:
    base = service.settings.base_models[0]
    return {
        "url": "http://127.0.0.1:1", "api_key": "k" * 32, "base_model": base.name, "base_fingerprint": base.fingerprint,
        "state": "ready", "max_loras": 4, "max_lora_rank": 64, "context_length": 1024, "adapters": [], **changes,
    }  # fmt: skip


def ids(membership: Membership) -> list[str]:
    return [replica.id for replica in membership.ready("weft-tiny")]


def test_a_replica_comes_changes_and_goes(service: Service, internal: httpx2.Client, membership: Membership) -> None:
    assert internal.put("/replicas/a", json=beat(service, state="starting")).json()["evict"] == []
    assert ids(membership) == []
    internal.put("/replicas/a", json=beat(service, url="http://127.0.0.1:2/")).raise_for_status()
    wait_until(lambda: ids(membership) == ["a"], seconds=3, what="the replica is known")
    assert membership.ready("weft-tiny")[0].url == "http://127.0.0.1:2"
    internal.put("/replicas/a", json=beat(service, api_key="n" * 32)).raise_for_status()
    wait_until(lambda: membership.ready("weft-tiny")[0].api_key == "n" * 32, seconds=3, what="the new key is known")
    for _ in range(2):
        assert internal.delete("/replicas/a").status_code == 204
    wait_until(lambda: ids(membership) == [], seconds=3, what="the replica is forgotten")


def test_a_replica_that_falls_silent_is_left_out_by_the_databases_clock(
    service: Service, internal: httpx2.Client, membership: Membership
) -> None:
    stage = Stage(service.resources, itertools.count())
    internal.put("/replicas/b", json=beat(service)).raise_for_status()
    wait_until(lambda: ids(membership) == ["b"], seconds=3, what="the replica is known")
    ttl = service.settings.replica_ttl_seconds
    query = "update replicas set seen_at = now() - make_interval(secs => :ttl) where id = 'b' returning id"
    assert service.call(stage.rows(query, ttl=ttl))
    wait_until(lambda: ids(membership) == [], seconds=3, what="the silent replica is left out")
    internal.put("/replicas/b", json=beat(service)).raise_for_status()
    wait_until(lambda: ids(membership) == ["b"], seconds=3, what="it is back")
    internal.delete("/replicas/b").raise_for_status()
    wait_until(lambda: ids(membership) == [], seconds=3, what="it is gone")


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"base_model": "other"}, 400, "invalid_request"),
        ({"base_fingerprint": "0" * 64}, 409, "base_model_mismatch"),
        ({"max_lora_rank": 32}, 409, "max_lora_rank_mismatch"),
        ({"url": "file:///etc/passwd"}, 400, "invalid_request"),
        ({"url": "http://"}, 400, "invalid_request"),
        ({"state": "bored"}, 400, "invalid_request"),
    ],
)
def test_what_cannot_serve_is_refused_and_told_why(
    service: Service, internal: httpx2.Client, membership: Membership, changes: dict[str, Any], status: int, code: str
) -> None:
    answer = internal.put("/replicas/c", json=beat(service, **changes))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert ids(membership) == []


def test_only_the_replica_token_opens_these_routes(service: Service, internal: httpx2.Client) -> None:
    worker = service.settings.worker_token.get_secret_value()
    for authorization in ("", f"Bearer {worker}", "Bearer " + "x" * 40):
        headers = {"authorization": authorization}
        assert internal.put("/replicas/d", json=beat(service), headers=headers).status_code == 401
        assert internal.delete("/replicas/d", headers=headers).status_code == 401
    assert internal.put("/replicas/d%2Fe", json=beat(service)).status_code == 404
    assert internal.put(f"/replicas/{'d' * 65}", json=beat(service)).status_code == 400


def test_a_replica_is_told_which_of_its_adapters_are_deleted(service: Service, internal: httpx2.Client) -> None:
    stage = Stage(service.resources, itertools.count())
    project = service.call(stage.project())
    kept, doomed = (service.call(published(stage, project)) for _ in range(2))

    async def delete() -> None:
        async with service.resources.database.tenant(project) as session:
            await retire(session, project, doomed[0])

    listed = [kept[1], doomed[1], "0" * 64]
    orders = ReplicaOrders.model_validate(internal.put("/replicas/f", json=beat(service, adapters=listed)).json())
    assert orders.evict == ()
    service.call(delete())
    orders = ReplicaOrders.model_validate(internal.put("/replicas/f", json=beat(service, adapters=listed)).json())
    assert orders.evict == (doomed[1],)
    orders = ReplicaOrders.model_validate(
        internal.put("/replicas/f", json=beat(service, adapters=[kept[1]], stored=listed)).json()
    )
    assert orders.evict == (doomed[1],), "also where it is one of many on its disk"
    internal.delete("/replicas/f").raise_for_status()


def test_a_replica_names_so_many_adapters_and_no_more(
    service: Service, internal: httpx2.Client, membership: Membership
) -> None:
    held = [f"{number:064x}" for number in range(MOST_ADAPTERS + 1)]
    full = beat(service, adapters=held[:-1], stored=held[:MOST_STORED])
    internal.put("/replicas/h", json=full).raise_for_status()
    wait_until(lambda: ids(membership) == ["h"], seconds=3, what="the replica is known")
    assert membership.ready("weft-tiny")[0].adapters == frozenset(held[:-1])
    for changes in ({"adapters": held}, {"stored": held[: MOST_STORED + 1]}):
        assert internal.put("/replicas/h", json=beat(service, **changes)).status_code == 400
    internal.delete("/replicas/h").raise_for_status()


def test_a_heartbeat_that_says_nothing_new_rewrites_nothing(service: Service, internal: httpx2.Client) -> None:
    stage = Stage(service.resources, itertools.count())
    held = [f"{number:064x}" for number in range(100)]
    written: list[str] = []

    def note(_1: object, _2: object, statement: str, *_3: object) -> None:
        if statement.lower().startswith(("insert into replicas", "update replicas")):
            written.append(statement)

    engine = service.resources.database._control_engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        for adapters in (held, held[::-1], held[1:]):
            internal.put("/replicas/i", json=beat(service, adapters=adapters)).raise_for_status()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    first, same, changed = written
    assert first.lower().startswith("insert")
    assert "adapters" not in same, "in another order they are the same"
    assert "adapters" in changed
    assert "url" not in changed
    seen = service.call(stage.rows("select seen_at > now() - interval '5 seconds' from replicas where id = 'i'"))
    assert seen[0][0]
    internal.delete("/replicas/i").raise_for_status()


async def published(stage: Stage, project: ProjectId) -> tuple[str, str]:
    """The name and adapter id of a new model."""
    job = await stage.job(project)
    manifest = adapter_manifest(JobSpec.model_validate((await stage.row(job)).spec), 1, {"a": job.encode()})
    async with stage.resources.database.control() as session:
        name = fine_tuned_model_name("weft-tiny", "acme", None)
        await publish(session, Trained(project, job, 1, manifest), name)
    return name, adapter_id_of(manifest)


async def test_a_suspect_is_one_for_a_while(
    service: Service, service_settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    membership = Membership(Resources.of(service_settings))
    replica = Replica("a", "http://127.0.0.1:1", "key", "weft-tiny", max_loras=4)
    monkeypatch.setattr("service.replicas.membership.SUSPECT_SECONDS", 0.2)
    membership.suspect(replica)
    assert membership.is_suspect(replica)
    wait_until(lambda: not membership.is_suspect(replica), seconds=1, what="the suspicion ends")


async def test_an_outage_of_the_database_drops_no_replica(
    service: Service, internal: httpx2.Client, service_settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    internal.put("/replicas/g", json=beat(service)).raise_for_status()
    resources = Resources.of(service_settings)
    own, stage = Membership(resources), Stage(resources, itertools.count())
    await own.refresh()
    assert ids(own) == ["g"]
    # Nobody can announce itself to a database that is away, for longer than the time to live.
    query = "update replicas set seen_at = now() - interval '1 hour' where id = 'g' returning id"
    assert await stage.rows(query)

    def away() -> None:
        raise DatabaseUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(resources.database, "control", away)
        await own.refresh()
        assert ids(own) == ["g"]
    await own.refresh()
    assert ids(own) == ["g"]
    with monkeypatch.context() as patch:
        later = time.monotonic() + service_settings.replica_ttl_seconds + 1
        patch.setattr("service.replicas.membership.time", SimpleNamespace(monotonic=lambda: later))
        await own.refresh()
    assert ids(own) == []
    internal.delete("/replicas/g").raise_for_status()
    await resources.database.close()
