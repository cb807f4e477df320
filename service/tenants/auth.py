"""Who is calling: turns the Authorization header into a Tenant, or proves the admin, worker or replica token.

A `Tenant` is the only proof of tenancy below the edge; this module alone makes one. Keys are kept in memory for
`cache_seconds`, so a revoked key dies within that time even where no notification arrives.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from pydantic import SecretStr
from sqlalchemy import select, text

from service.contracts.ids import KeyId, OrganizationId, ProjectId
from service.db import Database, TenantSession
from service.errors import Unauthenticated
from service.resources import CurrentResources
from service.tenants.keys import hash_key, public_id_of
from service.tenants.models import KeyRow, OrganizationRow, ProjectRow

CACHE_LIMIT = 10_000
USED = text(
    """
    update api_keys set last_used_at = now()
    where id = :id and (last_used_at is null or last_used_at < now() - interval '1 minute')
    """
)


@dataclass(frozen=True)
class Tenant:
    """A project proved by one of its keys."""

    project_id: ProjectId
    organization_id: OrganizationId
    organization_name: str
    key_id: KeyId


class KeyCache:
    """Known keys by hash, for a few seconds each. One per process; `forget` drops everything on a key notification."""

    def __init__(self, database: Database, seconds: float) -> None:
        self._database = database
        self._seconds = seconds
        self._known: dict[bytes, tuple[float, Tenant]] = {}
        self._loading: dict[bytes, asyncio.Task[Tenant | None]] = {}

    async def find(self, key: str) -> Tenant | None:
        """The tenant of a presented key, or None where there is none, it was revoked or its project is archived."""
        public_id = public_id_of(key)
        if public_id is None:
            return None
        digest = hash_key(key)
        known = self._known.get(digest)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        loading = self._loading.get(digest)
        if loading is None:
            loading = self._loading[digest] = asyncio.create_task(self._remembered(public_id, digest))
        # Shielded: the first of many who wait for one lookup may leave.
        return await asyncio.shield(loading)

    def forget(self) -> None:
        """What is being looked up now may have been read before the change, so it is not remembered either."""
        self._known.clear()
        self._loading.clear()

    async def _remembered(self, public_id: str, digest: bytes) -> Tenant | None:
        # Counted from before the look: a key revoked during it is not trusted for longer than the promised time.
        until = time.monotonic() + self._seconds
        try:
            tenant = await self._load(public_id, digest)
            if tenant is not None and self._loading.get(digest) is asyncio.current_task():
                if len(self._known) >= CACHE_LIMIT:
                    self._known.clear()
                self._known[digest] = (until, tenant)
            return tenant
        finally:
            if self._loading.get(digest) is asyncio.current_task():
                del self._loading[digest]

    async def _load(self, public_id: str, digest: bytes) -> Tenant | None:
        query = (
            select(KeyRow, ProjectRow.organization_id, OrganizationRow.name)
            .join(ProjectRow, ProjectRow.id == KeyRow.project_id)
            .join(OrganizationRow, OrganizationRow.id == ProjectRow.organization_id)
            .where(KeyRow.public_id == public_id, KeyRow.revoked_at.is_(None), ProjectRow.status == "active")
        )
        async with self._database.control() as session:
            found = (await session.execute(query)).one_or_none()
            if found is None or not hmac.compare_digest(found[0].hash, digest):
                return None
            await session.execute(USED, {"id": found[0].id})
        row, organization_id, organization_name = found
        return Tenant(ProjectId(row.project_id), OrganizationId(organization_id), organization_name, KeyId(row.id))


def bearer(authorization: str | None) -> str:
    """The token of an Authorization header. Raises Unauthenticated where there is none."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated(
            "You didn't provide an API key. Send it in the Authorization header: 'Authorization: Bearer sk-weft-…'."
        )
    return token.strip()


async def current_tenant(request: Request) -> Tenant:
    keys: KeyCache = request.app.state.keys
    tenant = await keys.find(bearer(request.headers.get("authorization")))
    if tenant is None:
        raise Unauthenticated("Incorrect API key provided. Ask your administrator for a key of your project.")
    return tenant


async def _tenant_session(resources: CurrentResources, tenant: "CurrentTenant") -> AsyncIterator[TenantSession]:
    async with resources.database.tenant(tenant.project_id) as session:
        yield session


def _proves(request: Request, secret: SecretStr) -> None:
    presented = hashlib.sha256(bearer(request.headers.get("authorization")).encode()).digest()
    if not hmac.compare_digest(presented, hashlib.sha256(secret.get_secret_value().encode()).digest()):
        raise Unauthenticated


def require_admin(request: Request, resources: CurrentResources) -> None:
    _proves(request, resources.settings.admin_key)


def require_worker(request: Request, resources: CurrentResources) -> None:
    _proves(request, resources.settings.worker_token)


def require_replica(request: Request, resources: CurrentResources) -> None:
    _proves(request, resources.settings.replica_token)


CurrentTenant = Annotated[Tenant, Depends(current_tenant)]
TenantTransaction = Annotated[TenantSession, Depends(_tenant_session, scope="function")]
"""One transaction as the caller's project; committed before the answer is sent."""
