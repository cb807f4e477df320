"""What one service process holds for its lifetime, and how routes get at it. Made and closed by `service.app`."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from service.contracts.base_model import BaseModelInfo
from service.contracts.store import ObjectStore
from service.db import ControlSession, Database
from service.idempotency.route import attempt_of
from service.metrics import Metrics
from service.notifications import Notifications
from service.settings import ServiceSettings


@dataclass(frozen=True)
class Resources:
    settings: ServiceSettings
    database: Database
    store: ObjectStore
    notifications: Notifications
    metrics: Metrics
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process takes no more requests: whatever waits for something to happen answers now."""

    @classmethod
    def of(cls, settings: ServiceSettings) -> "Resources":
        """Everything that `settings` name. Nothing is connected yet."""
        return cls(
            settings,
            Database(settings),
            ObjectStore(settings.store),
            Notifications(settings),
            Metrics(settings.metrics_projects),
        )

    def base_model(self, name: str) -> BaseModelInfo | None:
        """The allowed base of that public name, or None."""
        return next((base for base in self.settings.base_models if base.name == name), None)


def get_resources(request: Request) -> Resources:
    resources = request.app.state.resources
    assert isinstance(resources, Resources)
    return resources


async def _control_session(request: Request, resources: "CurrentResources") -> AsyncIterator[ControlSession]:
    attempt = attempt_of(request)
    async with resources.database.control() as session:
        if attempt is not None:
            await attempt.begin(session)
        yield session


CurrentResources = Annotated[Resources, Depends(get_resources)]

# scope="function": the transaction commits before the answer is sent, so what a caller was told is never rolled back.
ControlTransaction = Annotated[ControlSession, Depends(_control_session, scope="function")]
