"""Events as they happen, as the stock SDK and as raw readers take them: whole, in order, and to the end."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai.types.fine_tuning import FineTuningJobEvent

from service.contracts.ids import ProjectId
from service.contracts.worker import Event
from service.jobs import stream
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.stage import Stage


class Owner:
    def __init__(self, service: Service, stage: Stage) -> None:
        self.project: ProjectId = service.call(stage.project())
        self.key: str = service.call(stage.key(self.project))
        self.client = service.client(self.key)


@pytest.fixture(scope="module")
def owner(service: Service, stage: Stage) -> Owner:
    return Owner(service, stage)


@pytest.fixture
def job(service: Service, stage: Stage, owner: Owner) -> Iterator[str]:
    made = service.call(stage.job(owner.project))
    yield made
    service.call(stage.rows("update jobs set status = 'cancelled' where id = :job returning id", job=made))


@pytest.fixture
def raw(service: Service, owner: Owner) -> Iterator[httpx2.Client]:
    headers = {"authorization": f"Bearer {owner.key}"}
    with httpx2.Client(base_url=f"{service.url}/v1/fine_tuning/jobs", headers=headers, timeout=20) as client:
        yield client


def followed(client: openai.OpenAI, job: str, **query: str) -> Any:
    return client.get(
        f"/fine_tuning/jobs/{job}/events",
        options={"params": {"stream": "true", **query}},
        stream=True,
        stream_cls=openai.Stream[FineTuningJobEvent],
        cast_to=FineTuningJobEvent,
    )


def frames(answer: httpx2.Response) -> list[dict[str, str]]:
    """Every event of a stream that has ended, by field."""
    text = answer.text.replace(stream.KEEP_ALIVE, "")
    return [dict(line.split(": ", 1) for line in frame.split("\n")) for frame in text.strip().split("\n\n")]


def test_the_stock_client_follows_a_job_to_its_end(service: Service, stage: Stage, owner: Owner, job: str) -> None:
    heard: list[FineTuningJobEvent] = []
    thread = threading.Thread(target=lambda: heard.extend(followed(owner.client, job)))
    thread.start()
    wait_until(lambda: len(heard) == 3, what="the beginning was told")
    lease = service.call(stage.claimed())
    begun = time.monotonic()
    metrics = Event(id="ftevent-m1", type="metrics", message="Step 1", data={"step": 1, "train_loss": 0.5})
    service.call(stage.report(lease, events=(metrics,)))
    wait_until(lambda: len(heard) == 5, what="the step was told")
    assert time.monotonic() - begun < stream.POLL_SECONDS / 2, "a notification wakes the stream"
    service.call(stage.succeed(lease))
    thread.join(10)
    assert not thread.is_alive()
    assert [event.id for event in heard][::-1] == [event.id for event in owner.client.fine_tuning.jobs.list_events(job)]
    assert (heard[4].type, heard[4].data) == ("metrics", {"step": 1, "train_loss": 0.5})
    assert heard[-1].message == "The job has successfully completed"


def test_a_reader_that_was_cut_off_goes_on_where_it_was(owner: Owner, raw: httpx2.Client, job: str) -> None:
    owner.client.fine_tuning.jobs.cancel(job)
    whole = frames(raw.get(f"/{job}/events?stream=true"))
    assert [frame["event"] for frame in whole] == ["fine_tuning.job.event"] * 4 + ["done"]
    assert [frame.get("id") for frame in whole] == ["1", "2", "3", "4", None]
    second = json.loads(whole[1]["data"])["id"]
    by_header = frames(raw.get(f"/{job}/events?stream=true", headers={"last-event-id": "2"}))
    assert by_header == frames(raw.get(f"/{job}/events?stream=true&after={second}")) == whole[2:]
    both = raw.get(f"/{job}/events?stream=true&after={second}", headers={"last-event-id": "4"})
    assert frames(both) == whole[-1:]


def test_more_than_a_batch_arrives_whole(service: Service, stage: Stage, raw: httpx2.Client, job: str) -> None:
    lease = service.call(stage.claimed())
    many = tuple(Event(id=f"ftevent-{n}", message=f"line {n}\nof two") for n in range(2 * stream.BATCH + 7))
    service.call(stage.report(lease, events=many))
    service.call(stage.finish(lease, outcome="cancelled"))
    told = [json.loads(frame["data"])["message"] for frame in frames(raw.get(f"/{job}/events?stream=true"))[:-1]]
    assert told[4:-1] == [event.message for event in many]


def test_what_is_no_place_in_the_stream_is_refused_before_it_begins(
    service: Service, stage: Stage, raw: httpx2.Client, job: str
) -> None:
    for value in ("x", "-1", "1.5", "9" * 40, "²"):
        refused = raw.get(f"/{job}/events?stream=true", headers=[(b"last-event-id", value.encode())])
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Last-Event-ID")
    assert raw.get(f"/{job}/events?stream=true&after=ftevent-x").status_code == 400
    foreign = service.call(stage.job(Owner(service, stage).project))
    assert raw.get(f"/{foreign}/events?stream=true").status_code == 404
    service.call(stage.rows("update jobs set status = 'cancelled' where id = :job returning id", job=foreign))


def test_without_notifications_a_look_finds_what_is_new(
    service: Service, stage: Stage, owner: Owner, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "POLL_SECONDS", 0.3)
    monkeypatch.setattr(stream, "KEEP_ALIVE_SECONDS", 0.5)
    monkeypatch.setattr(service.resources.notifications, "_heard", lambda *_: None)
    heard: list[Any] = []
    thread = threading.Thread(target=lambda: heard.extend(followed(owner.client, job)))
    thread.start()
    wait_until(lambda: len(heard) == 3, what="the beginning was told")
    # Long enough for several keep-alives, which the client must not take for events.
    time.sleep(1.5)
    owner.client.fine_tuning.jobs.cancel(job)
    thread.join(10)
    assert [event.message for event in heard][3:] == ["Fine-tuning job cancelled"]


def test_a_client_that_leaves_and_a_key_that_ends_end_the_stream(
    service: Service, stage: Stage, owner: Owner, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "POLL_SECONDS", 0.3)
    watched = service.resources.notifications._watched
    connection = socket.create_connection(("127.0.0.1", service.settings.port))
    head = f"GET /v1/fine_tuning/jobs/{job}/events?stream=true HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {owner.key}"
    connection.sendall(f"{head}\r\n\r\n".encode())
    wait_until(lambda: f"job {job}" in watched, what="the stream is open")
    connection.close()
    wait_until(lambda: f"job {job}" not in watched, what="the stream has ended with its client")

    other = service.call(stage.key(owner.project))
    heard: list[Any] = []
    thread = threading.Thread(target=lambda: heard.extend(followed(service.client(other), job)))
    thread.start()
    wait_until(lambda: len(heard) == 3, what="the beginning was told")
    revoke = "update api_keys set revoked_at = now() where project_id = :project returning id"
    service.call(stage.rows(revoke, project=owner.project))
    service.loop.call_soon_threadsafe(service.app.state.keys.forget)
    thread.join(10)
    assert not thread.is_alive()
    restore = "update api_keys set revoked_at = null where project_id = :project returning id"
    service.call(stage.rows(restore, project=owner.project))
    service.loop.call_soon_threadsafe(service.app.state.keys.forget)


def test_a_project_has_a_limited_number_of_streams(
    service: Service, stage: Stage, owner: Owner, raw: httpx2.Client, job: str
) -> None:
    streams, limit = service.app.state.event_streams, service.settings.max_project_event_streams
    assert streams == {}, "every stream of the tests before has ended"
    streams[owner.project] = limit
    try:
        refused = raw.get(f"/{job}/events?stream=true")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_streams")
        assert raw.get(f"/{job}/events").status_code == 200
    finally:
        streams.clear()


async def test_an_outage_of_the_database_only_delays(stage: Stage, service: Service, owner: Owner, job: str) -> None:
    """What a failing look gives is nothing, and not the end."""
    begin = stream.Place(owner.project, job, 0)

    class Away:
        def tenant(self, _: str) -> Any:
            raise stream.DatabaseUnavailable("gone")

    class Resources:
        database = Away()

    assert await stream._read(Resources(), begin, 0) == (False, [])  # type: ignore[arg-type]
    found = await asyncio.wrap_future(
        asyncio.run_coroutine_threadsafe(stream._read(service.resources, begin, 0), service.loop)
    )
    assert (found[0], len(found[1])) == (False, 3)
