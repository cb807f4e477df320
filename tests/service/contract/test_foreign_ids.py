"""Another tenant's id, wherever a request can name one, is answered like an id that does not exist."""

import pytest

from tests.service.conftest import Service
from tests.service.contract.conftest import Tenant
from tests.service.contract.matrix import KINDS, UNKNOWN, Place, ask, leaks, places


def test_the_matrix_has_every_kind_and_every_path() -> None:
    asked = places()
    assert {place.kind for place in asked} == set(UNKNOWN)
    assert set(KINDS.values()) <= set(UNKNOWN)


@pytest.mark.parametrize("place", places(), ids=str)
def test_a_foreign_id_is_answered_like_an_unknown_one(
    service: Service, tenants: tuple[Tenant, Tenant], place: Place
) -> None:
    assert leaks(service.url, *tenants, place) is None


def test_the_owner_still_has_everything(service: Service, tenants: tuple[Tenant, Tenant]) -> None:
    owner = tenants[1]
    for path, kind in (
        ("/files/{id}", "file"),
        ("/fine_tuning/jobs/{id}", "job"),
        ("/models/{id}", "model"),
        ("/models/{id}", "checkpoint model"),
        ("/webhook_endpoints/{id}", "endpoint"),
    ):
        assert ask(service.url, owner, Place("GET", path, kind), owner.ids[kind])[0] == 200
