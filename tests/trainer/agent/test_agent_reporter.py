"""The reporter's buffer: what it keeps while nobody listens, and for how long."""

import asyncio

from service.contracts.worker import ClaimRequest, Event, Lease
from tests.trainer.agent.agent_harness import FINGERPRINT, queue_job, until
from tests.trainer.agent.stand_in_service import StandInService
from trainer.agent.orders import Orders
from trainer.agent.reporter import BUFFER_EVENTS, Reporter
from trainer.control import ServiceClient


async def leased(client: ServiceClient) -> Lease:
    request = ClaimRequest(worker="test", base_model="weft-tiny", base_fingerprint=FINGERPRINT)
    lease = await client.claim(request)
    assert lease is not None
    return lease


def metrics(first: int, count: int) -> tuple[Event, ...]:
    return tuple(Event(id=f"ftevent-m{number}", message="step") for number in range(first, first + count))


async def test_the_buffer_is_bounded_and_says_what_it_lost(service: StandInService, client: ServiceClient) -> None:
    job = queue_job(service)
    reporter = Reporter(client, await leased(client), Orders(), every=0)
    reporter.add(metrics(0, BUFFER_EVENTS + 700))
    rest = await reporter.rest()
    received = {*job.events, *(event.id for event in rest)}
    assert received.issuperset(event.id for event in metrics(700, BUFFER_EVENTS))
    assert "ftevent-m699" not in received
    assert any(event.message.startswith("700 events were dropped") for event in (*job.events.values(), *rest))


async def test_a_newer_event_of_an_id_takes_the_place_of_the_older(
    service: StandInService, client: ServiceClient
) -> None:
    queue_job(service)
    reporter = Reporter(client, await leased(client), Orders(), every=0)
    reporter.add(metrics(0, 3))
    reporter.add((Event(id="ftevent-m1", message="again"),))
    assert [event.message for event in await reporter.rest()] == ["step", "step", "again"]


async def test_the_first_step_is_told_at_once(service: StandInService, client: ServiceClient) -> None:
    job = queue_job(service)
    reporter = Reporter(client, await leased(client), Orders(), every=3600)
    reporting = asyncio.create_task(reporter.run())
    await until(lambda: bool(job.reports), what="the first report")
    reporter.counts(1, 40)
    reporter.add(metrics(1, 1))
    await until(lambda: "ftevent-m1" in job.events, what="the first step's event")
    reporting.cancel()
    await asyncio.wait({reporting})


async def test_what_is_known_is_sent_before_something_is_built_on_it(
    service: StandInService, client: ServiceClient
) -> None:
    job = queue_job(service)
    reporter = Reporter(client, await leased(client), Orders(), every=3600)
    reporter.add(metrics(0, 450))
    assert await reporter.catch_up(patience=5)
    assert job.events.keys() == {f"ftevent-m{number}" for number in range(450)}
    assert await reporter.catch_up(patience=0), "there is nothing left"
