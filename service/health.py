"""Whether this process is up, and whether the service as a whole can work. Open to everyone; says no more than that."""

import asyncio
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from sqlalchemy import func, select

from service.contracts.store import StoreError
from service.db import DatabaseUnavailable
from service.replicas.models import ReplicaRow
from service.resources import CurrentResources, Resources

FRESH_SECONDS = 1.0
STORE_SECONDS = 5.0

router = APIRouter(tags=["health"])


@dataclass
class Readiness:
    """The last answer, kept for a second: an open route must not be a way to load the database and the store."""

    parts: dict[str, bool] = field(default_factory=dict[str, bool])
    until: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def now(self, resources: Resources) -> dict[str, bool]:
        async with self.lock:
            if time.monotonic() >= self.until:
                replicas, store = await asyncio.gather(_ready_replicas(resources), _store_answers(resources))
                self.parts = {"database": replicas is not None, "store": store, "replica": bool(replicas)}
                self.until = time.monotonic() + FRESH_SECONDS
            return self.parts


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """This process is up."""
    return {"status": "ok"}


class Ready(BaseModel):
    status: Literal["ready", "not ready"]
    database: bool
    store: bool
    replica: bool


@router.get("/readyz", responses={503: {"model": Ready, "description": "Not everything answers."}})
async def readyz(request: Request, response: Response, resources: CurrentResources) -> Ready:
    """Whether the database, the store and at least one replica answer; 503 where not."""
    readiness: Readiness = request.app.state.readiness
    parts = await readiness.now(resources)
    ready = all(parts.values())
    response.status_code = 200 if ready else 503
    return Ready(status="ready" if ready else "not ready", **parts)


async def _ready_replicas(resources: Resources) -> int | None:
    """How many replicas answer lately, or None where the database does not."""
    alive = ReplicaRow.seen_at > func.now() - timedelta(seconds=resources.settings.replica_ttl_seconds)
    query = select(func.count()).where(ReplicaRow.state == "ready", alive)
    try:
        async with resources.database.control() as session:
            return await session.scalar(query)
    except DatabaseUnavailable:
        return None


async def _store_answers(resources: Resources) -> bool:
    try:
        async with asyncio.timeout(STORE_SECONDS):
            await asyncio.to_thread(resources.store.ensure_bucket)
    except (StoreError, TimeoutError):
        return False
    return True
