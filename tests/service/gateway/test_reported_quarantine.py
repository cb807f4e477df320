"""An adapter that made one replica's engine compute no numbers: refused here, for every replica, and only for a day."""

from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from service.contracts.replica import QUARANTINE_SECONDS
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.gateway.conftest import Tenant, beat, chat, make_tenant
from tests.service.gateway.upstream import Upstream
from tests.service.stage import Stage


@pytest.fixture
def bad(service: Service, stage: Stage) -> Tenant:
    return service.call(make_tenant(stage))


def test_what_one_replica_reports_is_refused_and_told_why(
    upstream: Upstream, http: httpx2.Client, service: Service, stage: Stage, tenant: Tenant, bad: Tenant
) -> None:
    def ask(whose: Tenant) -> httpx2.Response:
        own = {"authorization": f"Bearer {whose.key}"}
        return http.post("/chat/completions", json=chat(whose.model), headers=own)

    assert ask(bad).status_code == 200
    report = {bad.adapter: datetime.now(UTC).isoformat(), "0" * 64: datetime.now(UTC).isoformat()}
    beat(service, upstream, quarantined=report)
    wait_until(lambda: ask(bad).status_code == 422, what="the gateway knows", seconds=3)
    asked = len(upstream.bodies)
    refused = ask(bad)
    assert refused.json()["error"]["code"] == "adapter_invalid"
    assert "not numbers" in refused.json()["error"]["message"]
    assert len(upstream.bodies) == asked, "no replica was asked"
    assert ask(tenant).status_code == 200
    # The replica may be gone for good; what it found out stays.
    beat(service, upstream)
    assert ask(bad).status_code == 422

    query = (
        "update adapters set quarantined_at = quarantined_at - make_interval(secs => :age) where id = :id returning id"
    )
    assert service.call(stage.rows(query, age=QUARANTINE_SECONDS, id=bad.adapter))
    wait_until(lambda: ask(bad).status_code == 200, what="the quarantine is over", seconds=3)


def test_report_of_long_ago_is_no_news(upstream: Upstream, service: Service, stage: Stage, bad: Tenant) -> None:
    over = datetime.now(UTC) - timedelta(seconds=QUARANTINE_SECONDS + 1)
    beat(service, upstream, quarantined={bad.adapter: over.isoformat()})
    query = "select quarantined_at from adapters where id = :id"
    assert service.call(stage.rows(query, id=bad.adapter))[0][0] is None
    now = datetime.now(UTC)
    for since in (now, now - timedelta(hours=1), now + timedelta(hours=1)):
        beat(service, upstream, quarantined={bad.adapter: since.isoformat()})
    noted = service.call(stage.rows(query, id=bad.adapter))[0][0]
    assert now <= noted < now + timedelta(minutes=1), "the latest counts, by the database's clock at most"
