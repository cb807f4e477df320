"""From what a request says to what is meant: the key to a tenant, the model name to a base or one immutable adapter.

A name of the registry's means a version, or several that share its requests: which one is decided request by request.
All come from memory; the database is asked when an answer is older than `cache_seconds` or a notification came.
"""

import base64
import hmac
from dataclasses import dataclass
from functools import lru_cache

from service.adapters import registry
from service.adapters.aliases import ServingRoute, Share, find_route, version_name
from service.adapters.removal import not_found
from service.contracts.ids import ProjectId
from service.errors import Unauthenticated
from service.gateway.known import LastKnown
from service.gateway.shares import asker_of, chosen
from service.resources import Resources
from service.tenants.auth import KeyCache, Tenant, bearer
from service.tenants.keys import hash_key

NAME_LENGTH = 256
MANY_WORDS = 10_000


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a registered adapter, by the id of that and the project that it belongs to.

    `alias` is the one that led here, at its `revision` then; None where the version was named itself.
    """

    registered_id: str
    owner: ProjectId
    number: int
    alias: str | None
    revision: int


@dataclass(frozen=True, slots=True)
class Target:
    """What serves a name. `model` is what a replica knows it by: an adapter id, or the base's own name.

    `version` is given where the registry led here; `name` is then the version's own. Of its requests, the `fraction` of
    `shadow` is to be repeated there.
    """

    name: str
    base: str
    model: str
    version: Version | None = None
    shadow: "Shadow | None" = None

    @property
    def is_adapter(self) -> bool:
        return self.model != self.name


@dataclass(frozen=True, slots=True)
class Shadow:
    target: Target
    fraction: float


@dataclass(frozen=True, slots=True)
class Split:
    """An alias with several versions behind it. `shares` are their numbers with their weights, in the same order."""

    place: str
    targets: tuple[Target, ...]
    shares: tuple[tuple[int, float], ...]


class Callers:
    """Tenants by key. `KeyCache` decides how long a key lives; this only outlasts the database."""

    def __init__(self, keys: KeyCache) -> None:
        self._keys = keys
        self._known = LastKnown[bytes, Tenant](seconds=0)

    async def tenant(self, authorization: str | None, address: str | None) -> Tenant:
        """Raises Unauthenticated where the key is missing, wrong or revoked, RateLimited where too many were."""
        key = bearer(authorization)
        digest = hash_key(key)
        tenant = self._keys.known(digest)
        if tenant is None:
            tenant = await self._known.get(digest, lambda: self._keys.find(key, address))
        # Expired: it may be the last known answer, from before an outage.
        if tenant is None or tenant.expired:
            raise Unauthenticated("Incorrect API key provided. Ask your administrator for a key of your project.")
        return tenant


class Resolver:
    """Targets by project and public name."""

    def __init__(self, resources: Resources) -> None:
        self._database = resources.database
        self._bases = {base.name: Target(base.name, base.name, base.name) for base in resources.settings.base_models}
        self._known = LastKnown[tuple[ProjectId, str], Target | Split](resources.settings.cache_seconds)

    async def target(self, project: ProjectId, name: str, raw: bytes = b"{}") -> Target:
        """What serves one request, whose body is `raw`.

        Raises ModelNotFound, in the same words, for an unknown, a deleted and another tenant's model.
        """
        base = self._bases.get(name)
        if base is not None:
            return base
        found = None
        if len(name) <= NAME_LENGTH and name.isprintable():
            found = await self._known.get((project, name), lambda: self._load(project, name))
        if found is None:
            raise not_found(name[:NAME_LENGTH])
        if isinstance(found, Split):
            return found.targets[chosen(found.place, found.shares, asker_of(raw))]
        return found

    def forget(self) -> None:
        self._known.forget()

    async def _load(self, project: ProjectId, name: str) -> Target | Split | None:
        async with self._database.tenant(project) as session:
            if not name.startswith("ft:"):
                route = await find_route(session, project, name)
                return _of_route(route) if route else None
            found = await registry.find(session, project, name)
        return Target(name, found.manifest.base_model, found.adapter_id) if found else None


def _of_route(route: ServingRoute) -> Target | Split:
    shadow = Shadow(_of_share(route, route.shadow, None), route.shadow.weight) if route.shadow else None
    targets = tuple(_of_share(route, share, shadow) for share in route.shares)
    if len(targets) == 1:
        return targets[0]
    shares = tuple((share.version, share.weight) for share in route.shares)
    return Split(f"{route.registered_id}@{route.alias}", targets, shares)


def _of_share(route: ServingRoute, share: Share, shadow: Shadow | None) -> Target:
    # A request that went to the shadowing version itself has nothing to be compared with.
    shadow = shadow if shadow and shadow.target.model != share.artifact else None
    version = Version(route.registered_id, route.owner, share.version, route.alias, route.revision)
    return Target(version_name(route.adapter, share.version), share.base, share.artifact, version, shadow)


class Pseudonyms:
    """What a replica gets instead of a tenant's name: words that say nothing and that nobody else can make."""

    def __init__(self, resources: Resources) -> None:
        self._secret = resources.settings.secret.get_secret_value().encode()
        self._word = lru_cache(MANY_WORDS)(self._made)

    def cache_salt(self, project: ProjectId) -> str:
        """The salt of the tenant's prefix cache: without it, one tenant could time out what another has asked."""
        return self._word(b"cache-salt", project)

    def tenant(self, project: ProjectId) -> str:
        """The word by which a replica shares out turns among tenants."""
        return self._word(b"tenant", project)

    def batches(self, project: ProjectId) -> str:
        """The same for the tenant's batches, which then do not stand before its own other requests."""
        return self._word(b"batches", project)

    def _made(self, purpose: bytes, project: ProjectId) -> str:
        """Without padding and in the URL alphabet, since vLLM refuses '/'."""
        digest = hmac.digest(self._secret, purpose + b"\0" + project.encode(), "sha256")
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
