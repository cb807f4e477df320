"""Adapters on their way in (imports of PEFT adapters) and out (exports as PEFT or as merged weights)."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio
from openai import AsyncStream, Omit, Stream, omit
from openai.pagination import AsyncCursorPage, SyncCursorPage
from typing_extensions import Unpack

from weft.errors import ExportFailed, ImportFailed
from weft.options import Extras, path
from weft.resource import AsyncResource, SyncResource
from weft.resources.downloading import NewFile, NewFolder, announced
from weft.resources.events import Deadline
from weft.resources.uploading import Meter, OnProgress
from weft.types.transfers import AdapterExport, AdapterImport, ExportedFile

if TYPE_CHECKING:
    from weft.stock import AsyncPaginator

IMPORTS = "/adapters/imports"
EXPORTS = "/adapters/{}/versions/{}/exports"
EXPORT = "/adapters/exports/{}"
POLL_SECONDS = 1.0
Format = Literal["peft", "merged"]


def _ended(imported: AdapterImport) -> bool:
    """Raises ImportFailed."""
    if imported.status == "failed":
        raise ImportFailed(imported)
    return imported.status == "succeeded"


def _made(exported: AdapterExport) -> bool:
    """Raises ExportFailed, also where the files are gone again."""
    if exported.status in ("failed", "expired"):
        raise ExportFailed(exported)
    return exported.status == "succeeded"


def _bytes(files: list[ExportedFile]) -> int:
    return sum(file.bytes for file in files)


class Imports(SyncResource):
    """Adapters that were trained elsewhere, made versions of a registered adapter. See also `adapters.push`."""

    def create(
        self,
        *,
        adapter: str,
        files: Mapping[str, str] | Omit = omit,
        source: str | Omit = omit,
        base_model: str | Omit = omit,
        **extras: Unpack[Extras],
    ) -> AdapterImport:
        """Begins an import of uploaded files, by name and file id, or of `source`, an S3 address.

        >>> files = {
        ...     name: client.files.upload(f"trained-elsewhere/{name}", "user_data").id
        ...     for name in ("adapter_config.json", "adapter_model.safetensors")
        ... }
        >>> begun = client.adapters.imports.create(adapter="imported-bot", files=files)
        >>> client.adapters.imports.wait(begun.id, timeout=60).model
        'imported-bot@v1'
        """
        body = {"adapter": adapter, "files": files, "source": source, "base_model": base_model}
        return self._do("post", IMPORTS, AdapterImport, extras, body)

    def list(
        self,
        *,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        order: Literal["asc", "desc"] | Omit = omit,
        **extras: Unpack[Extras],
    ) -> SyncCursorPage[AdapterImport]:
        """Newest first."""
        return self._pages(IMPORTS, AdapterImport, extras, {"after": after, "limit": limit, "order": order})

    def retrieve(self, import_id: str, **extras: Unpack[Extras]) -> AdapterImport:
        return self._one(path(IMPORTS + "/{}", import_id), AdapterImport, extras)

    def wait(self, import_id: str, *, timeout: float | None = None) -> AdapterImport:
        """The import once it has succeeded. Raises ImportFailed, and WaitTimeout after `timeout` seconds."""
        deadline = Deadline(timeout, f"Import {import_id}")
        while not _ended(found := self.retrieve(import_id)):
            time.sleep(deadline.left(POLL_SECONDS))
        return found


class AsyncImports(AsyncResource):
    """As Imports; every method is awaited."""

    async def create(
        self,
        *,
        adapter: str,
        files: Mapping[str, str] | Omit = omit,
        source: str | Omit = omit,
        base_model: str | Omit = omit,
        **extras: Unpack[Extras],
    ) -> AdapterImport:
        body = {"adapter": adapter, "files": files, "source": source, "base_model": base_model}
        return await self._do("post", IMPORTS, AdapterImport, extras, body)

    def list(
        self,
        *,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        order: Literal["asc", "desc"] | Omit = omit,
        **extras: Unpack[Extras],
    ) -> "AsyncPaginator[AdapterImport, AsyncCursorPage[AdapterImport]]":
        return self._pages(IMPORTS, AdapterImport, extras, {"after": after, "limit": limit, "order": order})

    async def retrieve(self, import_id: str, **extras: Unpack[Extras]) -> AdapterImport:
        return await self._one(path(IMPORTS + "/{}", import_id), AdapterImport, extras)

    async def wait(self, import_id: str, *, timeout: float | None = None) -> AdapterImport:
        deadline = Deadline(timeout, f"Import {import_id}")
        # What is waited for is in another process.
        while not _ended(found := await self.retrieve(import_id)):  # noqa: ASYNC110
            await anyio.sleep(deadline.left(POLL_SECONDS))
        return found


class Exports(SyncResource):
    """Versions taken along. See also `adapters.pull`."""

    def create(self, adapter: str, version: int, *, format: Format = "peft", **extras: Unpack[Extras]) -> AdapterExport:
        """Begins an export; one as `peft` is ready at once, one as `merged` weights is made by a worker.

        >>> exported = client.adapters.exports.create("support-bot", 1)
        >>> exported = client.adapters.exports.wait(exported.id, timeout=60)
        >>> [path.name for path in client.adapters.exports.download(exported, "taken")]
        ['adapter_config.json', 'adapter_model.safetensors']
        """
        return self._do("post", path(EXPORTS, adapter, version), AdapterExport, extras, {"format": format})

    def retrieve(self, export_id: str, **extras: Unpack[Extras]) -> AdapterExport:
        return self._one(path(EXPORT, export_id), AdapterExport, extras)

    def wait(self, export_id: str, *, timeout: float | None = None) -> AdapterExport:
        """The export once its files are there. Raises ExportFailed, and WaitTimeout after `timeout` seconds."""
        deadline = Deadline(timeout, f"Export {export_id}")
        while not _made(found := self.retrieve(export_id)):
            time.sleep(deadline.left(POLL_SECONDS))
        return found

    def download(
        self, exported: AdapterExport, folder: str | os.PathLike[str], *, on_progress: OnProgress | None = None
    ) -> tuple[Path, ...]:
        """The export's files in a new folder, checked by their SHA-256. After an error there is no such folder."""
        files = announced(exported)
        meter = Meter(_bytes(files), on_progress)
        with NewFolder(folder) as partial:
            for file in files:
                self._fetch(exported.id, file, partial, meter)
        return tuple(Path(folder) / file.path for file in files)

    def _fetch(self, export_id: str, file: ExportedFile, folder: Path, meter: Meter) -> None:
        where = path(EXPORT + "/files/", export_id) + path("{}", file.path)
        stream = self._client.get(where, cast_to=bytes, stream=True, stream_cls=Stream[Any])
        with stream, NewFile(folder / file.path, file, meter) as target:
            for piece in stream.response.iter_bytes():
                target.write(piece)


class AsyncExports(AsyncResource):
    """As Exports; every method is awaited."""

    async def create(
        self, adapter: str, version: int, *, format: Format = "peft", **extras: Unpack[Extras]
    ) -> AdapterExport:
        return await self._do("post", path(EXPORTS, adapter, version), AdapterExport, extras, {"format": format})

    async def retrieve(self, export_id: str, **extras: Unpack[Extras]) -> AdapterExport:
        return await self._one(path(EXPORT, export_id), AdapterExport, extras)

    async def wait(self, export_id: str, *, timeout: float | None = None) -> AdapterExport:
        deadline = Deadline(timeout, f"Export {export_id}")
        # What is waited for is in another process.
        while not _made(found := await self.retrieve(export_id)):  # noqa: ASYNC110
            await anyio.sleep(deadline.left(POLL_SECONDS))
        return found

    async def download(
        self, exported: AdapterExport, folder: str | os.PathLike[str], *, on_progress: OnProgress | None = None
    ) -> tuple[Path, ...]:
        files = announced(exported)
        meter = Meter(_bytes(files), on_progress)
        with NewFolder(folder) as partial:
            for file in files:
                await self._fetch(exported.id, file, partial, meter)
        return tuple(Path(folder) / file.path for file in files)

    async def _fetch(self, export_id: str, file: ExportedFile, folder: Path, meter: Meter) -> None:
        where = path(EXPORT + "/files/", export_id) + path("{}", file.path)
        stream = await self._client.get(where, cast_to=bytes, stream=True, stream_cls=AsyncStream[Any])
        async with stream:
            with NewFile(folder / file.path, file, meter) as target:
                async for piece in stream.response.aiter_bytes():
                    target.write(piece)
