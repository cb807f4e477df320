"""Webhook endpoints as the stock SDK manages them: every method of `client.webhooks`, and what is refused."""

from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from openai.types.webhooks import FineTuningJobSucceededWebhookEvent

from tests.service.conftest import Service
from tests.service.stage import Stage
from tests.service.webhooks.conftest import Owner, Receiver

JOBS: list[Any] = ["fine_tuning.job.succeeded", "fine_tuning.job.failed"]


def test_made_found_changed_and_ended(owner: Owner) -> None:
    webhooks = owner.client.webhooks
    made = webhooks.create(name="ci", url="https://example.com/hook", event_types=JOBS)
    assert made.id.startswith("we_")
    assert made.signing_secret.startswith("whsec_")
    assert made.signing_secret_hint == f"whsec_…{made.signing_secret[-4:]}"
    found = webhooks.retrieve(made.id)
    assert "signing_secret" not in found.to_dict()
    assert found.to_dict() == {key: value for key, value in made.to_dict().items() if key != "signing_secret"}
    changed = webhooks.update(made.id, name="nightly", event_types=["fine_tuning.job.cancelled"])
    assert (changed.name, changed.url, changed.event_types) == ("nightly", found.url, ["fine_tuning.job.cancelled"])
    assert [each.id for each in webhooks.list()] == [made.id]
    assert webhooks.delete(made.id).deleted
    for call in (webhooks.retrieve, webhooks.delete, webhooks.rotate_secret):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    assert list(webhooks.list()) == []


def test_changes_are_in_the_audit_log_without_address_and_secret(service: Service, stage: Stage, owner: Owner) -> None:
    webhooks = owner.client.webhooks
    made = webhooks.create(name="ci", url="https://example.com/token-5f0e", event_types=JOBS)
    webhooks.update(made.id, url="https://example.com/token-71aa")
    rotated = webhooks.rotate_secret(made.id)
    webhooks.delete(made.id)
    query = "select type, details::text as details from audit_logs where subject = :id order by created_at"
    entries = service.call(stage.rows(query, id=made.id))
    kinds = ["created", "updated", "secret_rotated", "deleted"]
    assert [entry.type for entry in entries] == [f"webhook_endpoint.{kind}" for kind in kinds]
    told = " ".join(entry.details for entry in entries)
    for hidden in ("token-", made.signing_secret, rotated.signing_secret):
        assert hidden not in told


def test_the_database_holds_no_secret(service: Service, stage: Stage, owner: Owner) -> None:
    made = owner.client.webhooks.create(name="ci", url="https://example.com", event_types=JOBS)
    (row,) = service.call(stage.rows("select * from webhook_endpoints where id = :id", id=made.id))
    key = made.signing_secret.removeprefix("whsec_")
    assert key not in str(row)


def test_pages_and_event_types(owner: Owner) -> None:
    made = [
        owner.client.webhooks.create(name=f"n{n}", url="https://example.com", event_types=JOBS).id for n in range(5)
    ]
    assert [each.id for each in owner.client.webhooks.list(limit=2)] == made[::-1]
    known = owner.client.webhooks.event_types.list().data
    assert set(known) >= {*JOBS, "fine_tuning.job.cancelled", "checkpoint.created"}


def test_a_sample_is_signed_and_the_answer_told(owner: Owner, receiver: Receiver) -> None:
    webhooks = owner.client.webhooks
    made = webhooks.create(name="ci", url=receiver.url, event_types=JOBS)
    receiver.status = 418
    tested = webhooks.test(made.id, event_type="fine_tuning.job.succeeded")
    assert (tested.status_code, tested.success, tested.webhook_endpoint_id) == (418, True, made.id)
    ((headers, body),) = receiver.heard
    event = webhooks.unwrap(body, headers, secret=made.signing_secret)
    assert isinstance(event, FineTuningJobSucceededWebhookEvent)
    assert headers["webhook-id"] == event.id
    webhooks.update(made.id, url="http://127.0.0.1:1/")
    with pytest.raises(openai.BadRequestError, match="no connection") as unreachable:
        webhooks.test(made.id, event_type="fine_tuning.job.succeeded")
    assert unreachable.value.code == "webhook_unreachable"


def test_a_rotated_secret_signs_beside_the_new_one_only_where_that_was_asked(owner: Owner, receiver: Receiver) -> None:
    webhooks = owner.client.webhooks
    first = webhooks.create(name="ci", url=receiver.url, event_types=JOBS)
    second = webhooks.rotate_secret(first.id, keep_old_secret_active_for_24_hours=True)
    webhooks.test(first.id, event_type="fine_tuning.job.succeeded")
    headers, body = receiver.heard[-1]
    assert len(headers["webhook-signature"].split()) == 2
    for secret in (first.signing_secret, second.signing_secret):
        webhooks.unwrap(body, headers, secret=secret)
    third = webhooks.rotate_secret(first.id)
    assert len({first.signing_secret, second.signing_secret, third.signing_secret}) == 3
    webhooks.test(first.id, event_type="fine_tuning.job.succeeded")
    headers, body = receiver.heard[-1]
    webhooks.unwrap(body, headers, secret=third.signing_secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        webhooks.unwrap(body, headers, secret=second.signing_secret)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["response.completed"]}, "event_types"),
        ({"url": "ftp://example.com"}, "url"),
        ({"url": "https://"}, "url"),
        ({"url": "https://user:secret@example.com/"}, "url"),
        ({"url": "https://example.com/#part"}, "url"),
        ({"url": "https://example.com/\r\nx: y"}, "url"),
        ({"url": "https://[::1"}, "url"),
        ({"url": "https://example.com:99999/"}, "url"),
        ({"url": "/hook"}, "url"),
    ],
)
def test_what_cannot_be_an_endpoint_is_refused_by_name(owner: Owner, body: dict[str, Any], param: str) -> None:
    good: dict[str, Any] = {"name": "ci", "url": "https://example.com", "event_types": JOBS}
    with pytest.raises(openai.BadRequestError) as refused:
        owner.client.webhooks.create(**good | body)
    assert refused.value.param == param
    assert "secret" not in str(refused.value)


def test_a_project_has_a_limited_number_of_them(owner: Owner) -> None:
    for _ in range(20):
        owner.client.webhooks.create(name="n", url="https://example.com", event_types=JOBS)
    with pytest.raises(openai.BadRequestError) as refused:
        owner.client.webhooks.create(name="n", url="https://example.com", event_types=JOBS)
    assert refused.value.code == "too_many_webhook_endpoints"


def test_a_foreign_endpoint_is_answered_exactly_like_an_unknown_one(
    service: Service, make_owner: Callable[[], Owner]
) -> None:
    owner, stranger = make_owner(), make_owner()
    foreign = stranger.client.webhooks.create(name="n", url="https://example.com", event_types=JOBS).id
    unknown = "we_000000000000000000000000"
    headers = {"authorization": f"Bearer {owner.key}"}
    with httpx2.Client(base_url=f"{service.url}/v1/webhook_endpoints", headers=headers, timeout=20) as client:
        for method, path, body in (
            ("GET", "/{id}", None),
            ("POST", "/{id}", {"name": "mine"}),
            ("PATCH", "/{id}", {"name": "mine"}),
            ("DELETE", "/{id}", None),
            ("POST", "/{id}/rotate_secret", None),
            ("POST", "/{id}/test", {"event_type": "checkpoint.created"}),
            ("GET", "/{id}/deliveries", None),
            ("POST", "/{id}/deliveries/whd_x/redeliver", None),
        ):
            answers = [client.request(method, path.format(id=each), json=body) for each in (foreign, unknown)]
            assert {answer.status_code for answer in answers} == {404}, path
            assert len({answer.text.replace(foreign, "ID").replace(unknown, "ID") for answer in answers}) == 1
    assert stranger.client.webhooks.retrieve(foreign).name == "n"
