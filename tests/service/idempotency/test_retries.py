"""A creation that is asked for again, by whoever and however often, happens once."""

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from sqlalchemy import text

from service.contracts.ids import ProjectId
from service.idempotency import attempt
from service.idempotency.answers import Request
from service.idempotency.attempt import Attempt
from service.idempotency.sweep import sweep
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.idempotency.conftest import Owner
from tests.service.stage import Stage


def test_the_same_key_gives_the_same_answer_and_no_second_job(owner: Owner) -> None:
    first, second = owner.create("one"), owner.create("one")
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.content == second.content
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["x-request-id"] != first.headers["x-request-id"]
    assert owner.create("two").json()["id"] != first.json()["id"]
    assert owner.jobs() == 2


def test_of_twenty_at_once_with_the_same_key_one_makes_a_job_and_all_get_it(owner: Owner) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: owner.create("crowd"), range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert owner.jobs() == 1


def test_a_key_that_was_used_for_another_body_is_refused(owner: Owner) -> None:
    owner.create("mine")
    refused = owner.create("mine", suffix="other")
    assert refused.status_code == 422
    assert refused.json()["error"]["code"] == "idempotency_key_reused"
    assert refused.headers["x-should-retry"] == "false"
    assert owner.jobs() == 1


def test_a_key_belongs_to_one_api_key_and_one_route(service: Service, stage: Stage, owner: Owner) -> None:
    made = owner.create("shared").json()["id"]
    other = {"authorization": f"Bearer {service.call(stage.key(owner.project))}", "idempotency-key": "shared"}
    assert owner.http.post("/fine_tuning/jobs", json=owner.body, headers=other).json()["id"] != made
    cancelled = owner.http.post(f"/fine_tuning/jobs/{made}/cancel", headers={"idempotency-key": "shared"})
    assert cancelled.json()["status"] == "cancelled"


def test_what_failed_is_tried_anew_under_the_same_key(owner: Owner) -> None:
    assert owner.create("again", training_file="file-none").status_code == 400
    assert owner.create("again").status_code == 200


@pytest.mark.parametrize("key", ["x" * 256, "a\tb", "é"])
def test_an_unusable_key_is_refused(owner: Owner, key: str) -> None:
    headers = {b"idempotency-key": key.encode()}
    refused = owner.http.post("/fine_tuning/jobs", json=owner.body, headers=headers)
    assert refused.json()["error"]["code"] == "invalid_idempotency_key"
    assert owner.jobs() == 0


def test_whoever_asks_twice_without_a_key_gets_two_jobs(owner: Owner) -> None:
    assert owner.create().json()["id"] != owner.create().json()["id"]


def test_a_stock_clients_retry_gets_the_first_answer(owner: Owner) -> None:
    first = owner.create()
    again = [owner.create(retry=count) for count in (1, 2)]
    assert [answer.content for answer in again] == [first.content] * 2
    assert owner.create(retry=1, seed=2).json()["id"] != first.json()["id"], "another body is another request"


def test_a_retry_of_what_never_arrived_creates(owner: Owner) -> None:
    first = owner.create(retry=1)
    assert first.status_code == 200
    assert owner.create(retry=2).content == first.content
    assert owner.jobs() == 1


def test_ten_minutes_later_an_identical_body_is_a_new_request(service: Service, stage: Stage, owner: Owner) -> None:
    first, keyed = owner.create(), owner.create("kept")
    age(service, owner.project, "10 minutes 1 second")
    assert owner.create(retry=1).json()["id"] != first.json()["id"]
    assert owner.create("kept").content == keyed.content
    age(service, owner.project, "24 hours")
    assert owner.create("kept").json()["id"] != keyed.json()["id"]


def test_old_answers_are_swept(service: Service, stage: Stage, owner: Owner) -> None:
    owner.create("old")
    age(service, owner.project, "25 hours")
    owner.create("new")
    service.call(sweep(service.resources.database))
    assert len(answers(service, stage, owner.project)) == 1


def test_a_retry_waits_for_the_first_attempt(service: Service, owner: Owner) -> None:
    """The first is still at work when the second arrives: here it is held by a lock on the file it needs."""
    release = threading.Event()

    async def hold() -> None:
        async with service.resources.database.control() as session:
            query = text("select 1 from files where id = :id for update")
            await session.execute(query, {"id": owner.body["training_file"]})
            held.set()
            await asyncio.to_thread(release.wait, 20)

    held = threading.Event()
    holding = asyncio.run_coroutine_threadsafe(hold(), service.loop)
    assert held.wait(10)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(owner.create)
        waiting(service, 1)
        second = pool.submit(owner.create, None, 1)
        waiting(service, 2)
        release.set()
        assert first.result(20).content == second.result(20).content
    holding.result(20)
    assert owner.jobs() == 1


def test_an_attempt_that_lasts_too_long_makes_others_come_again(
    service: Service, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "WAIT_SECONDS", 0.2)
    described = Request("caller", "POST", "/", b"hash", "key", False, "secret")

    async def hold() -> None:
        async with service.resources.database.tenant(owner.project) as session:
            await Attempt(described).begin(session)
            async with service.resources.database.tenant(owner.project) as other:
                await Attempt(described).begin(other)

    with pytest.raises(Exception, match="still being worked on") as caught:
        service.call(hold())
    error: Any = caught.value
    assert (error.status, error.headers) == (409, {"x-should-retry": "true", "Retry-After": "1"})


def test_the_sdk_gets_its_job_although_the_first_answer_was_lost(service: Service, owner: Owner) -> None:
    with Dropper(service.settings.port) as (port, dropped):
        sdk = openai.OpenAI(api_key=owner.key, base_url=f"http://127.0.0.1:{port}/v1", max_retries=2, timeout=30)
        job = sdk.fine_tuning.jobs.create(**owner.body)
        sdk.close()
    assert dropped == [1]
    assert job.id
    assert owner.jobs() == 1


def test_a_new_keys_value_is_replayed_and_lies_nowhere(
    service: Service, stage: Stage, admin: httpx2.Client, make_project: Callable[[str], tuple[str, str]]
) -> None:
    headers = {"idempotency-key": "the key"}
    path = f"/organization/projects/{make_project('secrets')[0]}/api_keys"
    first, second = (admin.post(path, json={"name": "k"}, headers=headers) for _ in range(2))
    assert first.status_code == 200
    assert first.content == second.content
    stored = answers(service, stage, "")
    assert stored
    assert not any(first.json()["value"].encode() in row.answer for row in stored)


def test_a_tenant_cannot_see_anothers_answers(service: Service, stage: Stage, owner: Owner) -> None:
    owner.create("mine")
    stranger = service.call(stage.project())

    async def seen(project: ProjectId) -> int:
        async with service.resources.database.tenant(project) as session:
            return await session.scalar(text("select count(*) from recorded_answers"))

    assert service.call(seen(stranger)) == 0
    assert service.call(seen(owner.project)) == 1


def age(service: Service, project: str, interval: str) -> None:
    async def back() -> None:
        async with service.resources.database.control() as session:
            statement = "update recorded_answers set expires_at = expires_at - cast(:interval as text)::interval"
            await session.execute(
                text(f"{statement} where project_id = :project"), {"interval": interval, "project": project}
            )

    service.call(back())


def answers(service: Service, stage: Stage, project: str) -> Any:
    query = "select answer from recorded_answers where project_id = :project"
    return service.call(stage.rows(query, project=project))


def waiting(service: Service, count: int) -> None:
    """Returns when so many sessions of tenants wait for a lock."""

    async def locked() -> int:
        query = (
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
            " and usename = 'weft_api'"
        )
        async with service.resources.database.tenant(ProjectId("none")) as session:
            return await session.scalar(text(query))

    wait_until(lambda: service.call(locked()) == count, what=f"{count} sessions waiting")


class Dropper:
    """A proxy that takes the first request, waits for its answer and hangs up instead of passing it on."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._dropped: list[int] = []
        self._server = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> tuple[int, list[int]]:
        self._thread = threading.Thread(target=self._serve, name="dropper")
        self._thread.start()
        return self._server.getsockname()[1], self._dropped

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client, socket.create_connection(("127.0.0.1", self._port)) as service:
                self._exchange(client, service)

    def _exchange(self, client: socket.socket, service: socket.socket) -> None:
        request = b""
        while not _whole(request):
            request += client.recv(65536)
        service.sendall(request)
        answer = b""
        while not _whole(answer):
            answer += service.recv(65536)
        if not self._dropped:
            self._dropped.append(1)
            return
        client.sendall(answer)


def _whole(message: bytes) -> bool:
    head, found, body = message.partition(b"\r\n\r\n")
    if not found:
        return False
    lengths = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return len(body) >= int(lengths[0])
