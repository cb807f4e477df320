"""Bad keys from one address: refused by number before they are looked up, and nobody else is held up by it."""

from collections.abc import Callable

import httpx2
import pytest

from service.errors import RateLimited
from service.tenants import throttle
from service.tenants.keys import make_key
from service.tenants.throttle import BURST, PER_SECOND, Throttle
from tests.conftest import wait_until
from tests.service.conftest import Service

MakeProject = Callable[[str], tuple[str, str]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time."""
    now = [1000.0]
    monkeypatch.setattr(throttle.time, "monotonic", lambda: now[0])
    return lambda to: now.__setitem__(0, to)


def exhausted(throttle: Throttle, address: str | None) -> bool:
    try:
        throttle.check(address)
    except RateLimited:
        return True
    return False


def test_a_burst_and_then_some_a_second(clock: Callable[[float], None]) -> None:
    bucket = Throttle()
    for _ in range(BURST):
        bucket.check("203.0.113.7")
        bucket.refused("203.0.113.7")
    with pytest.raises(RateLimited) as caught:
        bucket.check("203.0.113.7")
    assert caught.value.headers["Retry-After"] == "1"
    assert not exhausted(bucket, "203.0.113.8")
    clock(1000.01 + 1 / PER_SECOND)
    bucket.check("203.0.113.7")
    bucket.refused("203.0.113.7")
    assert exhausted(bucket, "203.0.113.7")
    clock(1000.0 + 2 * BURST)
    assert not exhausted(bucket, "203.0.113.7")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", None, "a unix socket"])
def test_addresses_that_may_stand_for_many_are_not_counted(address: str | None) -> None:
    bucket = Throttle()
    for _ in range(2 * BURST):
        bucket.refused(address)
    assert not exhausted(bucket, address)


def test_whoever_has_one_address_of_a_network_has_them_all() -> None:
    bucket = Throttle()
    for number in range(BURST + 1):
        bucket.refused(f"2001:db8:0:1::{number:x}")
    assert exhausted(bucket, "2001:db8:0:1:ffff::1")
    assert not exhausted(bucket, "2001:db8:0:2::1")
    for _ in range(BURST + 1):
        bucket.refused("::ffff:203.0.113.7")
    assert exhausted(bucket, "203.0.113.7")


def test_what_is_remembered_stays_small(clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "ADDRESSES", 100)
    bucket = Throttle()
    for number in range(200):
        bucket.refused(f"203.0.113.{number}")
    assert len(bucket._full_at) == 100
    clock(1001.0)
    bucket.refused("203.0.113.250")
    assert len(bucket._full_at) == 1


def ask(service: Service, key: str, address: str, path: str = "/v1/models") -> httpx2.Response:
    """As a proxy on this machine passes it on; the server believes such a proxy."""
    headers = {"authorization": f"Bearer {key}", "x-forwarded-for": address, "content-type": "application/json"}
    method = "POST" if path == "/v1/chat/completions" else "GET"
    return httpx2.request(method, service.url + path, headers=headers, timeout=30)


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("/v1/models", "198.51.100.1"),
        ("/v1/chat/completions", "198.51.100.2"),
        ("/v1/organization/projects", "198.51.100.3"),
        ("/internal/adapters/x", "198.51.100.4"),
    ],
)
def test_bad_keys_are_refused_by_number(
    service: Service, make_project: MakeProject, monkeypatch: pytest.MonkeyPatch, path: str, address: str
) -> None:
    # So that none comes back during the test, however slow the machine is.
    monkeypatch.setattr(throttle, "PER_SECOND", 0.01)
    _, good = make_project(f"neighbour of {address}")
    assert ask(service, good, address).status_code == 200
    answers = [ask(service, make_key(), address, path) for _ in range(BURST + 3)]
    assert [answer.status_code for answer in answers] == [401] * BURST + [429] * 3
    assert answers[-1].json()["error"]["code"] == "too_many_bad_keys"
    assert int(answers[-1].headers["retry-after"]) > 0
    assert ask(service, make_key(), "198.51.100.99", path).status_code == 401
    # Known here, it goes on at that address also after what is remembered of it was dropped.
    service.app.state.keys.forget()
    assert ask(service, good, address).status_code == 200


def test_a_revoked_key_is_a_bad_one(
    service: Service, admin: httpx2.Client, make_project: MakeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "PER_SECOND", 0.01)
    project, key = make_project("revoked here")
    address = "198.51.100.50"
    assert ask(service, key, address).status_code == 200
    (listed,) = admin.get(f"/organization/projects/{project}/api_keys").json()["data"]
    admin.delete(f"/organization/projects/{project}/api_keys/{listed['id']}").raise_for_status()
    wait_until(lambda: ask(service, key, address).status_code == 401, what="the key is refused")
    statuses = [ask(service, key, address).status_code for _ in range(BURST)]
    assert statuses[-1] == 429
