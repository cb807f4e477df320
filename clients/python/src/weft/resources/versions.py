"""An adapter's versions. Each is immutable; which one is used is said by aliases."""

from typing import TYPE_CHECKING, Literal

from openai import Omit, omit
from openai.pagination import AsyncCursorPage, SyncCursorPage
from typing_extensions import Unpack

from weft.options import Extras, path
from weft.resource import AsyncResource, SyncResource
from weft.types.adapters import AdapterVersion, Provenance, SourceParam, VersionDeleted

if TYPE_CHECKING:
    from weft.stock import AsyncPaginator

VERSIONS = "/adapters/{}/versions"
VERSION = VERSIONS + "/{}"


class Versions(SyncResource):
    """Each method takes the adapter's name and, where it is about one, the version's number."""

    def create(self, adapter: str, *, source: SourceParam, **extras: Unpack[Extras]) -> AdapterVersion:
        """The next version, of a finished job's model, of a checkpoint's, or of a model by any of its names.

        >>> version = client.adapters.versions.create("support-bot", source={"type": "job", "job_id": job_id})
        >>> version.model
        'support-bot@v2'
        """
        return self._do("post", path(VERSIONS, adapter), AdapterVersion, extras, {"source": source})

    def list(
        self,
        adapter: str,
        *,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        order: Literal["asc", "desc"] | Omit = omit,
        **extras: Unpack[Extras],
    ) -> SyncCursorPage[AdapterVersion]:
        """Newest first.

        >>> [version.version for version in client.adapters.versions.list("support-bot")]
        [1]
        """
        query = {"after": after, "limit": limit, "order": order}
        return self._pages(path(VERSIONS, adapter), AdapterVersion, extras, query)

    def retrieve(self, adapter: str, version: int, **extras: Unpack[Extras]) -> AdapterVersion:
        return self._one(path(VERSION, adapter, version), AdapterVersion, extras)

    def delete(self, adapter: str, version: int, **extras: Unpack[Extras]) -> VersionDeleted:
        """Deletes a version that no alias points at. Raises ConflictError where one does."""
        return self._do("delete", path(VERSION, adapter, version), VersionDeleted, extras)

    def provenance(self, adapter: str, version: int, **extras: Unpack[Extras]) -> Provenance:
        """What a version was made of: job, data hashes, seed, resolved hyperparameters, base and files.

        >>> client.adapters.versions.provenance("support-bot", 1).training_file.filename
        'train.jsonl'
        """
        return self._one(path(VERSION + "/provenance", adapter, version), Provenance, extras)


class AsyncVersions(AsyncResource):
    """As Versions; every method is awaited."""

    async def create(self, adapter: str, *, source: SourceParam, **extras: Unpack[Extras]) -> AdapterVersion:
        return await self._do("post", path(VERSIONS, adapter), AdapterVersion, extras, {"source": source})

    def list(
        self,
        adapter: str,
        *,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        order: Literal["asc", "desc"] | Omit = omit,
        **extras: Unpack[Extras],
    ) -> "AsyncPaginator[AdapterVersion, AsyncCursorPage[AdapterVersion]]":
        query = {"after": after, "limit": limit, "order": order}
        return self._pages(path(VERSIONS, adapter), AdapterVersion, extras, query)

    async def retrieve(self, adapter: str, version: int, **extras: Unpack[Extras]) -> AdapterVersion:
        return await self._one(path(VERSION, adapter, version), AdapterVersion, extras)

    async def delete(self, adapter: str, version: int, **extras: Unpack[Extras]) -> VersionDeleted:
        return await self._do("delete", path(VERSION, adapter, version), VersionDeleted, extras)

    async def provenance(self, adapter: str, version: int, **extras: Unpack[Extras]) -> Provenance:
        return await self._one(path(VERSION + "/provenance", adapter, version), Provenance, extras)
