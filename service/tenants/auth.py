"""Who is calling: turns the Authorization header into a Tenant, or proves the admin, worker or replica token.

A `Tenant` is the only proof of tenancy below the edge; this module alone makes one. Keys are kept in memory for
`cache_seconds`, so a revoked key dies within that time even where no notification arrives.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from pydantic import SecretStr
from sqlalchemy import func, or_, select, text

from service.contracts.ids import KeyId, OrganizationId, ProjectId
from service.db import Database, TenantSession
from service.errors import Unauthenticated
from service.idempotency.route import attempt_of, claimed
from service.resources import CurrentResources
from service.tenants import admin_keys, scopes
from service.tenants.audit import acts
from service.tenants.keys import hash_key, public_id_of
from service.tenants.models import KeyRow, OrganizationRow, ProjectRow
from service.tenants.request_rate import RequestRate
from service.tenants.throttle import Throttle

CACHE_LIMIT = 10_000
NEVER = (0.0, None)
USED = text(
    """
    update api_keys set last_used_at = now()
    where id = :id and (last_used_at is null or last_used_at < now() - interval '1 minute')
    """
)


@dataclass(frozen=True)
class ProjectLimits:
    """A project's own limits; what is None is the settings' own."""

    requests_per_minute: int | None = None
    management_per_minute: int | None = None
    tokens_per_minute: int | None = None
    streams: int | None = None
    budget_cents: int | None = None


@dataclass(frozen=True)
class Tenant:
    """A project proved by one of its keys. `expires` is the key's end by the monotonic clock."""

    project_id: ProjectId
    organization_id: OrganizationId
    organization_name: str
    key_id: KeyId
    service_account_id: str | None = None
    scopes: frozenset[str] = frozenset()
    expires: float | None = None
    limits: ProjectLimits = field(default_factory=ProjectLimits)

    @property
    def expired(self) -> bool:
        return self.expires is not None and self.expires <= time.monotonic()


class KeyCache:
    """Known keys by hash, for a few seconds each. One per process; `forget` drops everything on a key notification."""

    def __init__(self, database: Database, seconds: float) -> None:
        self._database = database
        self._seconds = seconds
        self._known: dict[bytes, tuple[float, Tenant]] = {}
        self._loading: dict[bytes, asyncio.Task[Tenant | None]] = {}
        self._good: set[bytes] = set()
        self.throttle = Throttle()

    async def find(self, key: str, address: str | None = None) -> Tenant | None:
        """The tenant of a presented key, or None where there is none, it was revoked or its project is archived.

        Raises RateLimited where too many that were none came from `address`, except for keys that were good before.
        """
        digest = hash_key(key)
        known = self.known(digest)
        if known is not None:
            return known
        if digest not in self._good:
            self.throttle.check(address)
        tenant = await self._looked_up(key, digest)
        if tenant is None:
            self._good.discard(digest)
            self.throttle.refused(address)
        elif len(self._good) < CACHE_LIMIT:
            self._good.add(digest)
        return tenant

    def known(self, digest: bytes) -> Tenant | None:
        """The tenant of a key whose last look-up still holds, by the key's hash."""
        until, tenant = self._known.get(digest, NEVER)
        return tenant if tenant is not None and until > time.monotonic() and not tenant.expired else None

    async def _looked_up(self, key: str, digest: bytes) -> Tenant | None:
        public_id = public_id_of(key)
        if public_id is None:
            return None
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
        left = func.extract("epoch", KeyRow.expires_at - func.clock_timestamp())
        query = (
            select(KeyRow, ProjectRow, OrganizationRow.name, left)
            .join(ProjectRow, ProjectRow.id == KeyRow.project_id)
            .join(OrganizationRow, OrganizationRow.id == ProjectRow.organization_id)
            .where(KeyRow.public_id == public_id, KeyRow.revoked_at.is_(None), ProjectRow.status == "active")
            .where(or_(KeyRow.expires_at.is_(None), left > 0))
        )
        asked = time.monotonic()
        async with self._database.control() as session:
            found = (await session.execute(query)).one_or_none()
            if found is None or not hmac.compare_digest(found[0].hash, digest):
                return None
            await session.execute(USED, {"id": found[0].id})
        row, project, organization_name, seconds = found
        expires = None if row.expires_at is None else asked + float(seconds)
        return _tenant(row, project, organization_name, expires)


def _tenant(key: KeyRow, project: ProjectRow, organization_name: str, expires: float | None) -> Tenant:
    limits = ProjectLimits(
        requests_per_minute=project.max_requests_per_minute,
        management_per_minute=project.max_management_per_minute,
        tokens_per_minute=project.max_tokens_per_minute,
        streams=project.max_streams,
        budget_cents=project.monthly_budget_cents,
    )
    return Tenant(
        project_id=ProjectId(project.id),
        organization_id=OrganizationId(project.organization_id),
        organization_name=organization_name,
        key_id=KeyId(key.id),
        service_account_id=key.service_account_id,
        scopes=frozenset(key.scopes),
        expires=expires,
        limits=limits,
    )


def bearer(authorization: str | None) -> str:
    """The token of an Authorization header. Raises Unauthenticated where there is none."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated(
            "You didn't provide an API key. Send it in the Authorization header: 'Authorization: Bearer sk-weft-…'."
        )
    return token.strip()


async def current_tenant(request: Request) -> Tenant:
    """Whose key the request has. Raises where it is none, where it may not do this, and where it asks too often."""
    tenant = await proved_tenant(request)
    rate: RequestRate = request.app.state.request_rate
    rate.admit(tenant.project_id, tenant.limits.management_per_minute)
    return tenant


async def proved_tenant(request: Request) -> Tenant:
    """The same, however often it is asked."""
    keys: KeyCache = request.app.state.keys
    tenant = await keys.find(bearer(request.headers.get("authorization")), _address(request))
    if tenant is None:
        raise Unauthenticated("Incorrect API key provided. Ask your administrator for a key of your project.")
    scopes.require(tenant.scopes, request.method, request.url.path)
    acts(request, "api_key", tenant.key_id, tenant.service_account_id)
    return tenant


async def _tenant_session(
    request: Request, resources: CurrentResources, tenant: "CurrentTenant"
) -> AsyncIterator[TenantSession]:
    attempt = attempt_of(request)
    async with resources.database.tenant(tenant.project_id) as session:
        if attempt is not None:
            await attempt.begin(session)
        yield session


async def _tenant_claim(request: Request, resources: CurrentResources, tenant: "CurrentTenant") -> AsyncIterator[None]:
    async with claimed(request, resources.database, tenant.project_id):
        yield


def _address(request: Request) -> str | None:
    return request.client.host if request.client else None


def _throttle(request: Request) -> Throttle:
    keys: KeyCache = request.app.state.keys
    return keys.throttle


def _is(presented: str, secret: SecretStr) -> bool:
    known = hashlib.sha256(secret.get_secret_value().encode()).digest()
    return hmac.compare_digest(hashlib.sha256(presented.encode()).digest(), known)


def _proves(request: Request, secret: SecretStr) -> None:
    if not _is(bearer(request.headers.get("authorization")), secret):
        throttle = _throttle(request)
        throttle.check(_address(request))
        throttle.refused(_address(request))
        raise Unauthenticated


async def require_admin(request: Request, resources: CurrentResources) -> None:
    """The key of the configuration, or one that was made with it."""
    key, key_id = bearer(request.headers.get("authorization")), None
    if not _is(key, resources.settings.admin_key):
        throttle = _throttle(request)
        throttle.check(_address(request))
        key_id = await admin_keys.prove(resources.database, key)
        if key_id is None:
            throttle.refused(_address(request))
            raise Unauthenticated
    acts(request, "admin_key", key_id)


def require_worker(request: Request, resources: CurrentResources) -> None:
    _proves(request, resources.settings.worker_token)


def require_replica(request: Request, resources: CurrentResources) -> None:
    _proves(request, resources.settings.replica_token)


CurrentTenant = Annotated[Tenant, Depends(current_tenant)]
TenantTransaction = Annotated[TenantSession, Depends(_tenant_session, scope="function")]
"""One transaction as the caller's project; committed before the answer is sent."""
CLAIMED = Depends(_tenant_claim, scope="function")
"""In place of a transaction where the work is outside of the database: a request under a key is at work once."""
