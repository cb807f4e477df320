"""Waiting for a job: every event once and in order, whatever becomes of the connection, and typed ends."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import openai
import pytest

from service.contracts.ids import JobId
from tests.clients.conftest import Tenant, finish
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.stage import Stage
from weft import AsyncWeft, JobCancelled, JobFailed, WaitTimeout, Weft
from weft.types import JobEvent


@dataclass
class Proxy:
    """Passes connections on to the service, and cuts those that are told to be cut."""

    port: int
    target: int
    cut_after: list[int] = field(default_factory=list)
    """For each stream to come, after how many bytes of its answer it is cut; streams beyond are left alone."""
    streams: list[bytes] = field(default_factory=list)
    """The heads of the requests for streams."""
    plain: bool = False
    """Streams are not passed on as such: their question's `stream` is dropped."""


def pass_on(proxy: Proxy, source: socket.socket) -> None:
    """One request, which keeps this simple, and its answer, or as much of it as the proxy lets through."""
    with suppress(OSError), source, socket.create_connection(("127.0.0.1", proxy.target)) as target:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = source.recv(65536)
            if not piece:
                return
            head += piece
        limit = None
        if b"stream=true" in head:
            proxy.streams.append(head)
            if proxy.plain:
                head = head.replace(b"stream=true", b"limit=20")
            elif proxy.cut_after:
                limit = proxy.cut_after.pop(0)
        target.sendall(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        sent = 0
        while sent != limit and (piece := target.recv(65536)):
            piece = piece if limit is None else piece[: limit - sent]
            source.sendall(piece)
            sent += len(piece)


@pytest.fixture
def proxy(service: Service) -> Iterator[Proxy]:
    listener = socket.create_server(("127.0.0.1", 0))
    made = Proxy(listener.getsockname()[1], service.settings.port)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=pass_on, args=(made, connection), daemon=True).start()

    thread = threading.Thread(target=accept, name="proxy")
    thread.start()
    yield made
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def through(proxy: Proxy, tenant: Tenant) -> Weft:
    return Weft(api_key=tenant.key, base_url=f"http://127.0.0.1:{proxy.port}/v1", max_retries=0, timeout=20)


def told(client: Weft, job: str) -> list[str]:
    """What the service itself says has happened, oldest first."""
    return [event.id for event in client.fine_tuning.jobs.list_events(job)][::-1]


def test_a_wait_tells_each_event_once_and_returns_the_finished_job(tenant: Tenant, queued: JobId, worker: None) -> None:
    heard: list[JobEvent] = []
    job = tenant.client.fine_tuning.jobs.wait(queued, on_event=heard.append, timeout=60)
    assert job.status == "succeeded"
    assert job.fine_tuned_model
    assert [event.id for event in heard] == told(tenant.client, queued)
    assert [event.data["step"] for event in heard if event.type == "metrics" and event.data] == [1, 2]


def test_an_asynchronous_wait_does_the_same(tenant: Tenant, queued: JobId, worker: None) -> None:
    heard: list[JobEvent] = []

    async def wait() -> str:
        async with AsyncWeft(api_key=tenant.key, base_url=tenant.client.base_url) as client:
            job = await client.fine_tuning.jobs.wait(queued, on_event=heard.append, timeout=60)
            return job.status

    assert asyncio.run(wait()) == "succeeded"
    assert [event.id for event in heard] == told(tenant.client, queued)


@pytest.mark.parametrize("plain", [False, True])
def test_a_listener_of_the_asynchronous_client_may_be_awaited(
    tenant: Tenant, queued: JobId, worker: None, proxy: Proxy, plain: bool
) -> None:
    proxy.plain = plain
    heard: list[str] = []

    async def hear(event: JobEvent) -> None:
        await asyncio.sleep(0)
        heard.append(event.id)

    async def wait() -> None:
        async with AsyncWeft(api_key=tenant.key, base_url=f"http://127.0.0.1:{proxy.port}/v1") as client:
            await client.fine_tuning.jobs.wait(queued, on_event=hear, timeout=60)

    asyncio.run(wait())
    assert heard == told(tenant.client, queued)


@pytest.mark.parametrize("cut_after", [[900], [100, 1200, 2300], [1100] * 5])
def test_a_broken_stream_goes_on_behind_the_last_event(
    tenant: Tenant, queued: JobId, worker: None, proxy: Proxy, cut_after: list[int]
) -> None:
    proxy.cut_after = list(cut_after)
    heard: list[JobEvent] = []
    with through(proxy, tenant) as client:
        job = client.fine_tuning.jobs.wait(queued, on_event=heard.append, timeout=60)
    assert job.status == "succeeded"
    assert [event.id for event in heard] == told(tenant.client, queued)
    assert len(proxy.streams) > 1
    assert b"last-event-id: " in proxy.streams[-1].lower()


def test_streams_that_never_bring_anything_are_replaced_by_polling(
    tenant: Tenant, queued: JobId, worker: None, proxy: Proxy
) -> None:
    proxy.cut_after = [20] * 1000
    heard: list[JobEvent] = []
    with through(proxy, tenant) as client:
        client.fine_tuning.jobs.wait(queued, on_event=heard.append, timeout=60)
    assert [event.id for event in heard] == told(tenant.client, queued)
    assert len(proxy.streams) < 10


def test_a_service_that_does_not_stream_is_polled(tenant: Tenant, queued: JobId, worker: None, proxy: Proxy) -> None:
    proxy.plain = True
    heard: list[JobEvent] = []
    with through(proxy, tenant) as client:
        assert client.fine_tuning.jobs.wait(queued, on_event=heard.append, timeout=60).status == "succeeded"
    assert [event.id for event in heard] == told(tenant.client, queued)
    assert len(proxy.streams) == 1


def test_a_service_that_is_away_for_a_moment_is_waited_for(
    tenant: Tenant, queued: JobId, stage: Stage, service: Service, proxy: Proxy
) -> None:
    right, proxy.target = proxy.target, 1
    ended: list[str] = []
    with through(proxy, tenant) as client:
        thread = threading.Thread(target=lambda: ended.append(client.fine_tuning.jobs.wait(queued, timeout=60).status))
        thread.start()
        finish(service, stage, service.call(stage.claimed()))
        proxy.target = right
        thread.join(30)
    assert ended == ["succeeded"]


def test_a_failed_job_is_an_error_that_says_why(tenant: Tenant, queued: JobId, stage: Stage, service: Service) -> None:
    lease = service.call(stage.claimed())
    failure = {"code": "out_of_memory", "message": "It did not fit."}
    service.call(stage.finish(lease, outcome="failed", failure=failure))
    with pytest.raises(JobFailed, match=r"It did not fit") as caught:
        tenant.client.fine_tuning.jobs.wait(queued, timeout=30)
    assert (caught.value.code, caught.value.job.id) == ("out_of_memory", queued)
    assert isinstance(caught.value, openai.OpenAIError)


def test_a_cancelled_job_is_another_error(tenant: Tenant, queued: JobId) -> None:
    threading.Timer(0.3, lambda: tenant.client.fine_tuning.jobs.cancel(queued)).start()
    with pytest.raises(JobCancelled) as caught:
        tenant.client.fine_tuning.jobs.wait(queued, timeout=30)
    assert caught.value.job.status == "cancelled"


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_wait_ends_in_time_and_the_job_goes_on(tenant: Tenant, queued: JobId, seconds: float) -> None:
    with pytest.raises(WaitTimeout, match="wait for it again"):
        tenant.client.fine_tuning.jobs.wait(queued, timeout=seconds)
    assert tenant.client.fine_tuning.jobs.retrieve(queued).status == "queued"
    tenant.client.fine_tuning.jobs.cancel(queued)


def test_an_error_of_the_listener_ends_the_wait(tenant: Tenant, queued: JobId) -> None:
    def refuse(event: JobEvent) -> None:
        raise RuntimeError(event.id)

    with pytest.raises(RuntimeError, match="ftevent"):
        tenant.client.fine_tuning.jobs.wait(queued, on_event=refuse, timeout=30)
    tenant.client.fine_tuning.jobs.cancel(queued)


@pytest.mark.parametrize(
    "call", [lambda jobs: jobs.wait("ftjob-none"), lambda jobs: jobs.wait("ftjob-none", timeout=5)]
)
def test_a_job_that_does_not_exist_is_not_waited_for(tenant: Tenant, call: Callable[[object], object]) -> None:
    with pytest.raises(openai.NotFoundError):
        call(tenant.client.fine_tuning.jobs)


def test_waiting_for_a_finished_job_returns_at_once(tenant: Tenant, queued: JobId, worker: None) -> None:
    jobs = tenant.client.fine_tuning.jobs
    jobs.wait(queued, timeout=60)
    heard: list[JobEvent] = []
    assert jobs.wait(queued, on_event=heard.append, timeout=5).status == "succeeded"
    assert [event.id for event in heard] == told(tenant.client, queued)


def test_lists_give_jobs_and_events_that_know_what_weft_adds(tenant: Tenant, queued: JobId, worker: None) -> None:
    jobs = tenant.client.fine_tuning.jobs
    jobs.wait(queued, timeout=60)
    (job,) = jobs.list(limit=1).data
    assert (job.id, job.ended, job.phase) == (queued, True, "finished")
    assert job.method is not None
    assert job.method.supervised is not None
    assert job.method.supervised.hyperparameters.lora_rank > 0
    assert all(isinstance(event, JobEvent) for event in jobs.list_events(queued))
    assert jobs.list(metadata={"team": "none"}).data == []
    assert jobs.checkpoints.list(queued).data == []


def test_create_and_wait_is_both(tenant: Tenant, worker: None, queued: JobId) -> None:
    wait_until(lambda: tenant.client.fine_tuning.jobs.retrieve(queued).ended, what="the first job ended")
    file = tenant.client.fine_tuning.jobs.retrieve(queued).training_file
    job = tenant.client.fine_tuning.jobs.create_and_wait(model="weft-tiny", training_file=file, wait_timeout=60)
    assert job.status == "succeeded"
