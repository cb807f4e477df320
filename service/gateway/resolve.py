"""From what a request says to what is meant: the key to a tenant, the model name to a base or one immutable adapter.

Both come from memory; the database is asked when an answer is older than `cache_seconds` or a notification came.
"""

import base64
import hmac
from dataclasses import dataclass

from service.adapters import registry
from service.adapters.removal import not_found
from service.contracts.ids import ProjectId
from service.errors import Unauthenticated
from service.gateway.known import LastKnown
from service.resources import Resources
from service.tenants.auth import KeyCache, Tenant, bearer
from service.tenants.keys import hash_key

NAME_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Target:
    """What serves a name. `model` is what a replica knows it by: an adapter id, or the base's own name."""

    name: str
    base: str
    model: str

    @property
    def is_adapter(self) -> bool:
        return self.model != self.name


class Callers:
    """Tenants by key. `KeyCache` decides how long a key lives; this only outlasts the database."""

    def __init__(self, keys: KeyCache) -> None:
        self._keys = keys
        self._known = LastKnown[bytes, Tenant](seconds=0)

    async def tenant(self, authorization: str | None) -> Tenant:
        """Raises Unauthenticated where the key is missing, wrong or revoked."""
        key = bearer(authorization)
        tenant = await self._known.get(hash_key(key), lambda: self._keys.find(key))
        # Expired: it may be the last known answer, from before an outage.
        if tenant is None or tenant.expired:
            raise Unauthenticated("Incorrect API key provided. Ask your administrator for a key of your project.")
        return tenant


class Resolver:
    """Targets by project and public name."""

    def __init__(self, resources: Resources) -> None:
        self._database = resources.database
        self._bases = {base.name: Target(base.name, base.name, base.name) for base in resources.settings.base_models}
        self._known = LastKnown[tuple[ProjectId, str], Target](resources.settings.cache_seconds)

    async def target(self, project: ProjectId, name: str) -> Target:
        """Raises ModelNotFound, in the same words, for an unknown, a deleted and another tenant's model."""
        base = self._bases.get(name)
        if base is not None:
            return base
        target = None
        if len(name) <= NAME_LENGTH and name.isprintable():
            target = await self._known.get((project, name), lambda: self._load(project, name))
        if target is None:
            raise not_found(name[:NAME_LENGTH])
        return target

    def forget(self) -> None:
        self._known.forget()

    async def _load(self, project: ProjectId, name: str) -> Target | None:
        async with self._database.tenant(project) as session:
            found = await registry.find(session, project, name)
        return Target(name, found.manifest.base_model, found.adapter_id) if found else None


class Pseudonyms:
    """What a replica gets instead of a tenant's name: words that say nothing and that nobody else can make."""

    def __init__(self, resources: Resources) -> None:
        self._secret = resources.settings.secret.get_secret_value().encode()

    def cache_salt(self, project: ProjectId) -> str:
        """The salt of the tenant's prefix cache: without it, one tenant could time out what another has asked."""
        return self._word(b"cache-salt", project)

    def tenant(self, project: ProjectId) -> str:
        """The word by which a replica shares out turns among tenants."""
        return self._word(b"tenant", project)

    def batches(self, project: ProjectId) -> str:
        """The same for the tenant's batches, which then do not stand before its own other requests."""
        return self._word(b"batches", project)

    def _word(self, purpose: bytes, project: ProjectId) -> str:
        """Without padding and in the URL alphabet, since vLLM refuses '/'."""
        digest = hmac.digest(self._secret, purpose + b"\0" + project.encode(), "sha256")
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
