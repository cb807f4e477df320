"""What a project's webhook is told, read from the outbox."""

import json
from typing import Any, Protocol

import httpx2

from service.contracts.ids import ProjectId
from tests.service.conftest import Service
from tests.service.stage import Stage


class Hearer(Protocol):
    service: Service
    stage: Stage
    project: ProjectId

    @property
    def headers(self) -> dict[str, str]: ...


def hear(own: Hearer, *kinds: str) -> None:
    body = {"name": "mine", "url": "https://example.com/hook", "event_types": kinds}
    answer = httpx2.post(f"{own.service.url}/v1/webhook_endpoints", json=body, headers=own.headers, timeout=10)
    assert answer.status_code == 200, answer.text


def heard(own: Hearer) -> list[dict[str, Any]]:
    """The data of each event with its type, oldest first."""
    query = "select body from webhook_deliveries where project_id = :project order by created_at"
    events = [json.loads(row[0]) for row in own.service.call(own.stage.rows(query, project=own.project))]
    return [{"type": event["type"], **event["data"]} for event in events]
