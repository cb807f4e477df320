"""Requests per minute of a project at the routes that manage: refused with the time to wait, and nobody else is."""

from collections.abc import Callable

import httpx2
import openai
import pytest

from service.contracts.ids import ProjectId
from service.errors import RateLimited
from service.tenants.request_rate import RequestRate
from tests.conftest import wait_until
from tests.service.conftest import Service

ONE, OTHER = ProjectId("proj_one"), ProjectId("proj_other")


def test_a_minutes_worth_at_once_and_then_as_the_bucket_fills() -> None:
    now = [1000.0]
    rate = RequestRate(30, lambda: now[0])
    for _ in range(30):
        rate.admit(ONE, None)
    with pytest.raises(RateLimited) as refused:
        rate.admit(ONE, None)
    assert (refused.value.code, refused.value.headers["Retry-After"]) == ("rate_limit_exceeded", "1")
    rate.admit(OTHER, None)
    now[0] += 2.0
    rate.admit(ONE, None)
    with pytest.raises(RateLimited):
        rate.admit(ONE, None)


def test_a_projects_own_limit_goes_before_and_may_be_nothing() -> None:
    rate = RequestRate(1000, lambda: 0.0)
    rate.admit(ONE, 1)
    for limit in (1, 0):
        with pytest.raises(RateLimited):
            rate.admit(ONE, limit)
    rate.admit(OTHER, None)


def test_the_stock_client_is_told_how_long_to_wait(
    service: Service, admin: httpx2.Client, make_project: Callable[[str], tuple[str, str]]
) -> None:
    project, key = make_project("hurried")
    limits = f"/organization/projects/{project}/rate_limits"
    changed = admin.post(f"{limits}/rl-all-models", json={"max_management_requests_per_1_minute": 3}).json()
    assert changed["max_management_requests_per_1_minute"] == 3
    client = service.client(key)
    seen: list[openai.RateLimitError] = []

    def refused() -> bool:
        try:
            client.files.list()
        except openai.RateLimitError as error:
            seen.append(error)
        return bool(seen)

    wait_until(refused, what="refused")
    assert seen[0].code == "rate_limit_exceeded"
    assert 1 <= int(seen[0].response.headers["retry-after"]) <= 60
    assert service.client(make_project("patient")[1]).files.list().data == []
    with pytest.raises(openai.APIStatusError) as inference:
        client.chat.completions.create(model="weft-tiny", messages=[])
    assert not isinstance(inference.value, openai.RateLimitError), "inference has rates of its own"
