"""Registered adapters, for the asynchronous client; `adapters` has the other one's and says what each method does."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import anyio
from openai import APIError, AsyncOpenAI, Omit, omit
from openai.pagination import AsyncCursorPage
from typing_extensions import Unpack

from weft.errors import ImportFailed
from weft.options import Extras, path
from weft.resources.adapters import ADAPTER, ADAPTERS
from weft.resources.evaluations import AsyncEvaluations
from weft.resources.files import AsyncFiles
from weft.resources.permissions import AsyncPermissions
from weft.resources.pushing import EXPIRY, PURPOSE, SavedAdapter
from weft.resources.references import Reference
from weft.resources.steering import AsyncSteering
from weft.resources.transfers import AsyncExports, AsyncImports, Format
from weft.resources.uploading import OnProgress
from weft.resources.versions import VERSION, AsyncVersions
from weft.stock import cached_property
from weft.types.adapters import (
    Adapter,
    AdapterDeleted,
    AdapterResidency,
    AdapterVersion,
    SourceParam,
)

if TYPE_CHECKING:
    from weft.stock import AsyncPaginator


class AsyncAdapters(AsyncSteering):
    """As Adapters; every method is awaited."""

    def __init__(self, client: AsyncOpenAI) -> None:
        super().__init__(client)
        self._files = AsyncFiles(client)

    @cached_property
    def versions(self) -> AsyncVersions:
        return AsyncVersions(self._client)

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
        saved, sent = SavedAdapter.of(folder), dict[str, str]()
        begun = ended = None
        try:
            for file, tell in saved.parts(on_progress):
                uploaded = await self._files.upload(file, PURPOSE, on_progress=tell, expires_after=EXPIRY)
                sent[file.name] = uploaded.id
            begun = await self.imports.create(adapter=adapter, files=sent, base_model=base_model)
            ended = await self.imports.wait(begun.id, timeout=timeout)
        except ImportFailed as refused:
            ended = refused.imported
            raise
        finally:
            if begun is None or ended is not None:
                await self._forget(sent.values())
        assert ended is not None
        assert ended.version is not None
        return await self.versions.retrieve(adapter, ended.version)

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

    async def _forget(self, file_ids: Iterable[str]) -> None:
        """Also where the caller was cancelled. What it cannot delete expires by itself."""
        with anyio.move_on_after(5, shield=True):
            for file_id in file_ids:
                try:
                    await self._files.delete(file_id)
                except APIError:
                    continue
