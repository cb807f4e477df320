"""Which replicas hold which versions, and how near to the engine: from the rows of replicas, and from the replicas."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import aiohttp
from pydantic import ValidationError
from sqlalchemy import func, select

from service.adapters.models import VersionRow
from service.contracts.replica import ReplicaStatus, Tier
from service.db import TenantSession
from service.listing import Cursor
from service.registry import catalog, versions
from service.replicas.models import ReplicaRow
from service.resources import Resources

STATUS = "/v1/weft/status"
TIMEOUT = aiohttp.ClientTimeout(total=2)
NEWEST = 100
"""Versions looked at."""

log = logging.getLogger("service.registry")


@dataclass(frozen=True)
class Resident:
    """`tier` is None where a replica said that it has the adapter and could not be asked where."""

    replica: str
    tier: Tier | None


@dataclass(frozen=True)
class Residency:
    version: VersionRow
    replicas: Sequence[Resident]


async def version_rows(session: TenantSession, name: str) -> tuple[str | None, Sequence[VersionRow]]:
    """The adapter's base and its newest versions."""
    registered = await catalog.find(session, name)
    rows = await versions.list_versions(session, registered, Cursor(limit=NEWEST))
    return registered.base_model, rows[:NEWEST]


async def residency(resources: Resources, base: str | None, rows: Sequence[VersionRow]) -> list[Residency]:
    """Asks every live replica of the base. Outside of any transaction, since it calls the network."""
    alive = ReplicaRow.seen_at > func.now() - timedelta(seconds=resources.settings.replica_ttl_seconds)
    query = select(ReplicaRow).where(ReplicaRow.base_model == base, ReplicaRow.state == "ready", alive)
    async with resources.database.control() as session:
        replicas = (await session.scalars(query.order_by(ReplicaRow.id))).all()
    async with aiohttp.ClientSession(timeout=TIMEOUT) as client:
        held = await asyncio.gather(*(_held(client, replica) for replica in replicas))
    return [
        Residency(
            version,
            [
                Resident(replica.id, tiers[version.artifact_id])
                for replica, tiers in zip(replicas, held, strict=True)
                if version.artifact_id in tiers
            ],
        )
        for version in rows
    ]


async def _held(client: aiohttp.ClientSession, replica: ReplicaRow) -> dict[str, Tier | None]:
    headers = {"Authorization": f"Bearer {replica.api_key}"}
    try:
        async with client.get(replica.url + STATUS, headers=headers) as answer:
            answer.raise_for_status()
            return dict(ReplicaStatus.model_validate_json(await answer.read()).adapters)
    except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as error:
        log.info("replica %s did not say what it holds: %s", replica.id, error)
        return dict.fromkeys(replica.adapters)
