"""From a transition to the endpoint: in the same transaction, signed, retried, at least once under kill -9."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from openai.types.webhooks import FineTuningJobFailedWebhookEvent
from sqlalchemy import text

from service.notifications import notify
from service.webhooks import deliver
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.stage import Stage
from tests.service.webhooks.conftest import Owner, Receiver

EVERY: list[Any] = [
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "checkpoint.created",
]

DIES_AFTER_SENDING = """
import asyncio, os, signal, sys
from service.resources import Resources
from service.settings import ServiceSettings
from service.notifications import notify
from service.webhooks import deliver

async def die(session, attempt, outcome):
    os.kill(os.getpid(), signal.SIGKILL)

deliver.record = die
asyncio.run(deliver.run(Resources.of(ServiceSettings.model_validate_json(sys.stdin.read()))))
"""


def deliveries(owner: Owner, endpoint: str) -> list[dict[str, Any]]:
    return owner.client.get(f"/webhook_endpoints/{endpoint}/deliveries", cast_to=dict[str, Any])["data"]


def due(service: Service, stage: Stage) -> None:
    """Every wait for the next attempt is over."""

    async def done() -> None:
        async with stage.resources.database.control() as session:
            await session.execute(text("update webhook_deliveries set next_attempt_at = now()"))
            await notify(session, "webhook")

    service.call(done())


def types(receiver: Receiver) -> list[str]:
    return [json.loads(body)["type"] for _, body in receiver.heard]


def test_a_job_tells_what_became_of_it(service: Service, stage: Stage, owner: Owner, receiver: Receiver) -> None:
    endpoint = owner.client.webhooks.create(name="ci", url=receiver.url, event_types=EVERY)
    good = service.call(stage.job(owner.project))
    lease = service.call(stage.claimed())
    service.call(stage.checkpoint_model(lease, step=7))
    wait_until(lambda: types(receiver) == ["checkpoint.created"], what="the checkpoint was told")
    service.call(stage.succeed(lease))
    wait_until(lambda: types(receiver)[1:] == ["fine_tuning.job.succeeded"], what="the success was told")
    checkpoint, success = (json.loads(body) for _, body in receiver.heard)
    (shown,) = owner.client.fine_tuning.jobs.checkpoints.list(good)
    assert checkpoint["data"] == {
        "id": shown.id,
        "fine_tuning_job_id": good,
        "fine_tuned_model_checkpoint": shown.fine_tuned_model_checkpoint,
        "step_number": 7,
    }
    assert (success["object"], success["data"]) == ("event", {"id": good})

    bad = service.call(stage.job(owner.project))
    failure = {"code": "loss_diverged", "message": "The loss is NaN.", "param": None}
    service.call(stage.finish(service.call(stage.claimed()), outcome="failed", failure=failure))
    wait_until(lambda: types(receiver)[2:] == ["fine_tuning.job.failed"], what="the failure was told")
    headers, body = receiver.heard[-1]
    event = owner.client.webhooks.unwrap(body, headers, secret=endpoint.signing_secret)
    assert isinstance(event, FineTuningJobFailedWebhookEvent)
    assert (event.data.id, headers["webhook-id"], headers["content-type"]) == (bad, event.id, "application/json")

    cancelled = service.call(stage.job(owner.project))
    owner.client.fine_tuning.jobs.cancel(cancelled)
    owner.client.fine_tuning.jobs.cancel(cancelled)
    wait_until(lambda: len(receiver.heard) == 4, what="the cancellation was told")
    wait_until(
        lambda: [each["status"] for each in deliveries(owner, endpoint.id)] == ["delivered"] * 4, what="all recorded"
    )
    assert types(receiver)[-1] == "fine_tuning.job.cancelled"


def test_only_what_was_asked_for_and_only_the_own_projects(
    service: Service, stage: Stage, make_owner: Callable[[], Owner], receiver: Receiver
) -> None:
    owner, stranger = make_owner(), make_owner()
    made = owner.client.webhooks.create(name="ci", url=receiver.url, event_types=["fine_tuning.job.failed"])
    for each in (owner, stranger):
        each.client.fine_tuning.jobs.cancel(service.call(stage.job(each.project)))
    assert deliveries(owner, made.id) == []


async def test_an_event_exists_only_with_its_transition(service: Service, stage: Stage, owner: Owner) -> None:
    from service.jobs import lifecycle

    made = owner.client.webhooks.create(name="ci", url="https://example.com", event_types=EVERY)
    job = await _behind(service, stage.job(owner.project))

    async def taken_back() -> None:
        async with service.resources.database.tenant(owner.project) as session:
            await lifecycle.cancel(session, job)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await _behind(service, taken_back())
    assert deliveries(owner, made.id) == []


def test_a_refusal_is_repeated_under_the_same_id_and_410_ends_it(
    service: Service, stage: Stage, owner: Owner, receiver: Receiver
) -> None:
    receiver.status = 503
    made = owner.client.webhooks.create(name="ci", url=receiver.url, event_types=EVERY)
    owner.client.fine_tuning.jobs.cancel(service.call(stage.job(owner.project)))
    wait_until(lambda: deliveries(owner, made.id)[0]["error"] == "answered 503", what="the first attempt is recorded")
    (waiting,) = deliveries(owner, made.id)
    assert (waiting["status"], waiting["attempts"], waiting["response_status"]) == ("pending", 1, 503)
    assert 3 <= waiting["next_attempt_at"] - waiting["last_attempt_at"] <= 7
    receiver.status, receiver.headers = 302, {"location": receiver.url + "/elsewhere"}
    due(service, stage)
    wait_until(lambda: deliveries(owner, made.id)[0]["error"] == "answered 302", what="a redirect is a refusal")
    (waiting,) = deliveries(owner, made.id)
    assert 5 * 60 * 0.75 <= waiting["next_attempt_at"] - waiting["last_attempt_at"] <= 5 * 60 * 1.25
    assert len(receiver.heard) == 2
    assert len({headers["webhook-id"] for headers, _ in receiver.heard}) == 1

    receiver.status = 410
    due(service, stage)
    wait_until(lambda: deliveries(owner, made.id)[0]["status"] == "failed", what="gone is gone")
    assert owner.client.webhooks.retrieve(made.id).to_dict()["status"] == "disabled"
    owner.client.fine_tuning.jobs.cancel(service.call(stage.job(owner.project)))
    receiver.status = 200
    assert owner.client.webhooks.update(made.id, extra_body={"status": "enabled"}).to_dict()["status"] == "enabled"
    wait_until(lambda: deliveries(owner, made.id)[0]["status"] == "delivered", what="what waited is sent")

    gone = deliveries(owner, made.id)[1]
    again = f"/webhook_endpoints/{made.id}/deliveries/{gone['id']}/redeliver"
    owner.client.post(again, cast_to=dict[str, Any])
    wait_until(lambda: deliveries(owner, made.id)[1]["status"] == "delivered", what="it is sent again")
    assert receiver.heard[-1][0]["webhook-id"] == gone["event_id"] == receiver.heard[0][0]["webhook-id"]


def test_the_last_attempt_fails_for_good(service: Service, stage: Stage, owner: Owner, receiver: Receiver) -> None:
    receiver.status = 500
    made = owner.client.webhooks.create(name="ci", url=receiver.url, event_types=EVERY)
    owner.client.fine_tuning.jobs.cancel(service.call(stage.job(owner.project)))

    def recorded() -> bool:
        """The next one is then later than the last, or there is none."""
        (delivery,) = deliveries(owner, made.id)
        return delivery["status"] == "failed" or delivery["next_attempt_at"] > delivery["last_attempt_at"]

    for attempt in range(1, len(deliver.DELAYS) + 2):
        wait_until(lambda n=attempt: len(receiver.heard) == n, what=f"attempt {attempt}")
        wait_until(recorded, what=f"attempt {attempt} is recorded")
        due(service, stage)
    assert deliveries(owner, made.id)[0]["status"] == "failed", "no attempt is left"
    assert len(receiver.heard) == 10


def test_what_waits_for_a_disabled_endpoint_is_given_up_after_three_days(
    service: Service, stage: Stage, owner: Owner, receiver: Receiver
) -> None:
    made = owner.client.webhooks.create(name="ci", url=receiver.url, event_types=EVERY)
    place = f"/webhook_endpoints/{made.id}"
    owner.client.post(place, body={"status": "disabled"}, cast_to=dict[str, Any])
    job = service.call(stage.job(owner.project))
    owner.client.fine_tuning.jobs.cancel(job)

    def pruned_after(hours: float) -> dict[str, Any]:
        async def run() -> None:
            async with service.resources.database.control() as session:
                await deliver.prune(session)

        earlier = "update webhook_deliveries set next_attempt_at = now() - make_interval(secs => :s) returning id"
        service.call(stage.rows(earlier, s=hours * 3600))
        service.call(run())
        return deliveries(owner, made.id)[0]

    assert pruned_after(71.9)["status"] == "pending"
    given_up = pruned_after(72.1)
    assert (given_up["status"], given_up["error"]) == ("failed", "the endpoint was disabled for too long")

    owner.client.post(place, body={"status": "enabled"}, cast_to=dict[str, Any])
    owner.client.post(f"{place}/deliveries/{given_up['id']}/redeliver", cast_to=dict[str, Any])
    wait_until(lambda: types(receiver) == ["fine_tuning.job.cancelled"], what="it can be sent all the same")
    noted = "select subject from audit_logs where type = 'webhook_delivery.redelivered' and project_id = :p"
    assert service.call(stage.rows(noted, p=owner.project)) == [(given_up["id"],)]


def test_an_endpoint_that_never_answers_keeps_nobody_waiting(
    service: Service, stage: Stage, make_owner: Callable[[], Owner], receiver: Receiver
) -> None:
    slow, quick = make_owner(), make_owner()
    receiver.wait = threading.Event()
    slow.client.webhooks.create(name="ci", url=receiver.url, event_types=EVERY)
    for job in service.call(stage.jobs(slow.project, count=deliver.AT_ONCE + 8)):
        slow.client.fine_tuning.jobs.cancel(job)
    wait_until(lambda: len(receiver.heard) >= deliver.AT_ONCE_PER_ENDPOINT, what="the slow one is busy")
    made = quick.client.webhooks.create(name="ci", url="http://127.0.0.1:1/", event_types=EVERY)
    quick.client.fine_tuning.jobs.cancel(service.call(stage.job(quick.project)))
    wait_until(lambda: deliveries(quick, made.id)[0]["attempts"] == 1, 5, what="the other one has its turn")
    assert len(receiver.heard) == deliver.AT_ONCE_PER_ENDPOINT
    ids = service.call(stage.rows("delete from webhook_deliveries where project_id = :p returning id", p=slow.project))
    assert len(ids) == deliver.AT_ONCE + 8
    receiver.wait.set()


def test_what_was_sent_and_not_recorded_is_sent_again_under_its_id(
    service: Service, stage: Stage, owner: Owner, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process is killed between the attempt and its record, and another takes over when the lease has run out."""
    # This process looks away for a while.
    monkeypatch.setattr(deliver, "CLAIM", deliver.text("select id from webhook_deliveries where false"))
    made = owner.client.webhooks.create(name="ci", url=receiver.url, event_types=EVERY)
    owner.client.fine_tuning.jobs.cancel(service.call(stage.job(owner.project)))
    settings = json.dumps(_plain(service.settings))
    killed = subprocess.run(
        [sys.executable, "-c", DIES_AFTER_SENDING], input=settings, text=True, timeout=60, check=False, env=_bare()
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(receiver.heard) == 1
    (leased,) = deliveries(owner, made.id)
    assert (leased["status"], leased["attempts"]) == ("pending", 1)
    monkeypatch.undo()
    assert len(receiver.heard) == 1, "nobody else sends it while the lease may be alive"
    service.call(stage.rows("update webhook_deliveries set lease_until = now() where status = 'pending' returning id"))
    wait_until(lambda: deliveries(owner, made.id)[0]["status"] == "delivered", what="it was taken over")
    assert len(receiver.heard) == 2
    assert len({headers["webhook-id"] for headers, _ in receiver.heard}) == 1


def _plain(settings: Any) -> dict[str, Any]:
    """Settings with their secrets, for a process of our own."""

    def shown(value: Any) -> Any:
        if hasattr(value, "get_secret_value"):
            return value.get_secret_value()
        if isinstance(value, dict):
            return {key: shown(each) for key, each in value.items()}
        return [shown(each) for each in value] if isinstance(value, list | tuple) else value

    return {key: str(value) if key == "spool_dir" else value for key, value in shown(settings.model_dump()).items()}


def _bare() -> dict[str, str]:
    return {"PATH": os.environ["PATH"]}


async def _behind(service: Service, coroutine: Any) -> Any:
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, service.loop))
