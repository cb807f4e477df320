"""Registered adapters, for the asynchronous client; `adapters` has the other one's and says what each method does."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from openai import AsyncOpenAI, Omit, omit
from openai.pagination import AsyncCursorPage
from typing_extensions import Unpack

from weft.options import Extras, path
from weft.resource import AsyncResource
from weft.resources.adapters import ADAPTER, ADAPTERS, PUSHED
from weft.resources.aliases import AsyncAliases
from weft.resources.evaluations import AsyncEvaluations
from weft.resources.files import AsyncFiles
from weft.resources.permissions import AsyncPermissions
from weft.resources.references import Reference
from weft.resources.transfers import AsyncExports, AsyncImports, Format
from weft.resources.uploading import OnProgress
from weft.resources.versions import VERSION, AsyncVersions
from weft.stock import async_raw, cached_property
from weft.types.adapters import (
    Adapter,
    AdapterAlias,
    AdapterChange,
    AdapterDeleted,
    AdapterResidency,
    AdapterVersion,
    SourceParam,
)

if TYPE_CHECKING:
    from weft.stock import AsyncPaginator


class AsyncAdapters(AsyncResource):
    """As Adapters; every method is awaited."""

    def __init__(self, client: AsyncOpenAI) -> None:
        super().__init__(client)
        self._files = AsyncFiles(client)

    @cached_property
    def versions(self) -> AsyncVersions:
        return AsyncVersions(self._client)

    @cached_property
    def aliases(self) -> AsyncAliases:
        return AsyncAliases(self._client)

    @cached_property
    def permissions(self) -> AsyncPermissions:
        return AsyncPermissions(self._client)

    @cached_property
    def imports(self) -> AsyncImports:
        return AsyncImports(self._client)

    @cached_property
    def exports(self) -> AsyncExports:
        return AsyncExports(self._client)

    @cached_property
    def evaluations(self) -> AsyncEvaluations:
        return AsyncEvaluations(self._client)

    @cached_property
    def with_raw_response(self) -> "AsyncAdaptersWithRawResponse":
        return AsyncAdaptersWithRawResponse(self)

    async def create(
        self,
        *,
        name: str,
        description: str | Omit = omit,
        metadata: Mapping[str, str] | Omit = omit,
        source: SourceParam | Omit = omit,
        **extras: Unpack[Extras],
    ) -> Adapter:
        body = {"name": name, "description": description, "metadata": metadata, "from": source}
        return await self._do("post", ADAPTERS, Adapter, extras, body)

    def list(
        self,
        *,
        include_deleted: bool | Omit = omit,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        order: Literal["asc", "desc"] | Omit = omit,
        **extras: Unpack[Extras],
    ) -> "AsyncPaginator[Adapter, AsyncCursorPage[Adapter]]":
        query = {"include_deleted": include_deleted, "after": after, "limit": limit, "order": order}
        return self._pages(ADAPTERS, Adapter, extras, query)

    async def retrieve(self, adapter: str, **extras: Unpack[Extras]) -> Adapter:
        return await self._one(path(ADAPTER, adapter), Adapter, extras)

    async def update(
        self,
        adapter: str,
        *,
        description: str | Omit | None = omit,
        metadata: Mapping[str, str] | Omit | None = omit,
        **extras: Unpack[Extras],
    ) -> Adapter:
        body = {"description": description, "metadata": metadata}
        return await self._do("patch", path(ADAPTER, adapter), Adapter, extras, body)

    async def delete(self, adapter: str, **extras: Unpack[Extras]) -> AdapterDeleted:
        return await self._do("delete", path(ADAPTER, adapter), AdapterDeleted, extras)

    async def restore(self, adapter: str, **extras: Unpack[Extras]) -> Adapter:
        return await self._do("post", path(ADAPTER + "/restore", adapter), Adapter, extras)

    async def promote(
        self,
        reference: str,
        alias: str,
        *,
        if_revision: int | Omit = omit,
        reason: str | Omit = omit,
        **extras: Unpack[Extras],
    ) -> AdapterAlias:
        known = Reference.of(reference)
        version = await self._version(known)
        return await self.aliases.set(
            known.adapter, alias, version=version, if_revision=if_revision, reason=reason, **extras
        )

    async def rollback(
        self, adapter: str, alias: str = "default", *, reason: str | Omit = omit, **extras: Unpack[Extras]
    ) -> AdapterAlias:
        body = {"alias": alias, "reason": reason}
        return await self._do("post", path(ADAPTER + "/rollback", adapter), AdapterAlias, extras, body)

    def history(
        self,
        adapter: str,
        *,
        alias: str | Omit = omit,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        order: Literal["asc", "desc"] | Omit = omit,
        **extras: Unpack[Extras],
    ) -> "AsyncPaginator[AdapterChange, AsyncCursorPage[AdapterChange]]":
        query = {"alias": alias, "after": after, "limit": limit, "order": order}
        return self._pages(path(ADAPTER + "/history", adapter), AdapterChange, extras, query)

    def residency(
        self, adapter: str, **extras: Unpack[Extras]
    ) -> "AsyncPaginator[AdapterResidency, AsyncCursorPage[AdapterResidency]]":
        return self._pages(path(ADAPTER + "/residency", adapter), AdapterResidency, extras)

    async def warm(self, reference: str, **extras: Unpack[Extras]) -> AdapterVersion:
        known = Reference.of(reference)
        where = path(VERSION + "/warm", known.adapter, await self._version(known))
        return await self._do("post", where, AdapterVersion, extras)

    async def pin(self, reference: str, **extras: Unpack[Extras]) -> AdapterVersion:
        known = Reference.of(reference)
        where = path(VERSION + "/pin", known.adapter, await self._version(known))
        return await self._do("post", where, AdapterVersion, extras)

    async def unpin(self, reference: str, **extras: Unpack[Extras]) -> AdapterVersion:
        known = Reference.of(reference)
        where = path(VERSION + "/pin", known.adapter, await self._version(known))
        return await self._do("delete", where, AdapterVersion, extras)

    async def push(
        self,
        folder: str | os.PathLike[str],
        adapter: str,
        *,
        base_model: str | Omit = omit,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> AdapterVersion:
        files: dict[str, str] = {}
        for name in PUSHED:
            uploaded = await self._files.upload(Path(folder) / name, "user_data", on_progress=on_progress)
            files[name] = uploaded.id
        begun = await self.imports.create(adapter=adapter, files=files, base_model=base_model)
        done = await self.imports.wait(begun.id, timeout=timeout)
        assert done.version is not None
        return await self.versions.retrieve(adapter, done.version)

    async def pull(
        self,
        reference: str,
        folder: str | os.PathLike[str],
        *,
        format: Format = "peft",
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> tuple[Path, ...]:
        known = Reference.of(reference)
        begun = await self.exports.create(known.adapter, await self._version(known), format=format)
        done = await self.exports.wait(begun.id, timeout=timeout)
        return await self.exports.download(done, folder, on_progress=on_progress)

    async def _version(self, known: Reference) -> int:
        if known.version is not None:
            return known.version
        return (await self.aliases.retrieve(known.adapter, known.alias or "")).version


class AsyncAdaptersWithRawResponse:
    def __init__(self, adapters: AsyncAdapters) -> None:
        self.create = async_raw(adapters.create)
        self.list = async_raw(adapters.list)
        self.retrieve = async_raw(adapters.retrieve)
        self.update = async_raw(adapters.update)
        self.delete = async_raw(adapters.delete)
        self.restore = async_raw(adapters.restore)
        self.rollback = async_raw(adapters.rollback)
        self.history = async_raw(adapters.history)
        self.residency = async_raw(adapters.residency)
