"""Where a replica reads adapters from: the service for the manifest and presigned URLs, object storage for the bytes.

Turns every way a network can fail into an AdapterError; retries, caching and verification across files are the cache's.
"""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from pydantic import ValidationError

from inference.problems import AdapterError
from inference.settings import ReplicaSettings
from service.contracts.ids import AdapterId
from service.contracts.manifest import ManifestFile, adapter_id_of
from service.contracts.replica import AdapterSource

BATCH_BYTES = 1 << 20
_STALL_SECONDS = 15.0
"""A connection that brings no byte for so long is given up."""


class AdapterSources:
    """One HTTP session for the service and storage, made lazily inside the event loop; storage gets no credentials."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._service = settings.service_url.rstrip("/")
        self._token = settings.replica_token.get_secret_value()
        self._session: aiohttp.ClientSession | None = None

    async def describe(self, adapter: str) -> AdapterSource:
        """The adapter's manifest, proved to hash to its id, and a URL for each of its files."""
        url = f"{self._service}/internal/adapters/{adapter}"
        async with self._get(url, {"Authorization": f"Bearer {self._token}"}) as response:
            if response.status == 404:
                raise AdapterError("adapter_not_found", "This adapter does not exist.")
            if response.status != 200:
                raise _unavailable(f"the service answered {response.status}")
            body = await response.read()
        try:
            source = AdapterSource.model_validate_json(body)
        except ValidationError as error:
            raise AdapterError("adapter_corrupt", "The service sent no valid manifest for this adapter.") from error
        if source.adapter_id != adapter or adapter_id_of(source.manifest) != AdapterId(adapter):
            raise AdapterError("adapter_corrupt", "The adapter's manifest does not hash to its id.")
        missing = [file.path for file in source.manifest.files if file.path not in source.urls]
        if missing:
            raise AdapterError("adapter_corrupt", f"The service gave no address for {missing[0]}.")
        return source

    async def download(self, url: str, file: ManifestFile, target: Path) -> None:
        """Streams one file to `target`, and proves its size and hash on the way."""
        async with self._get(url, {}) as response:
            if response.status == 404:
                raise AdapterError("adapter_corrupt", f"{file.path} is missing from storage.")
            if response.status != 200:
                raise _unavailable(f"storage answered {response.status}")
            with target.open("xb", buffering=0) as sink:
                digest, size = await _receive(response.content, sink, file.size)
        if size != file.size or digest != file.sha256:
            raise AdapterError("adapter_corrupt", f"{file.path} in storage is not what was published.")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _get(self, url: str, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=_STALL_SECONDS)
            # Compressed answers would defeat the size bound, redirects the choice of host.
            self._session = aiohttp.ClientSession(
                timeout=timeout,
                auto_decompress=False,
                headers={"Accept-Encoding": "identity"},
                read_bufsize=BATCH_BYTES,
            )
        try:
            async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unavailable(type(error).__name__) from error


async def _receive(content: aiohttp.StreamReader, sink: io.RawIOBase, limit: int) -> tuple[str, int]:
    """Hashes and writes one batch in a thread while the next one arrives; no more than two are in memory."""
    digest, size = hashlib.sha256(), 0

    def keep(batch: list[bytes]) -> None:
        for part in batch:
            digest.update(part)
            rest = memoryview(part)
            while rest:
                rest = rest[sink.write(rest) or 0 :]

    kept: asyncio.Future[None] | None = None
    try:
        while size <= limit and (batch := await _batch(content)):
            size += sum(map(len, batch))
            if kept is not None:
                await kept
            kept = asyncio.ensure_future(asyncio.to_thread(keep, batch))
    finally:
        # Also where the fetch is cancelled: the file must not be closed under the thread.
        if kept is not None:
            await kept
    return digest.hexdigest(), size


async def _batch(content: aiohttp.StreamReader) -> list[bytes]:
    """About a batch of bytes in the parts in which they came, never joined: copying them is half of what it costs."""
    parts: list[bytes] = []
    size = 0
    while size < BATCH_BYTES and (part := await content.readany()):
        parts.append(part)
        size += len(part)
    return parts


def _unavailable(reason: str) -> AdapterError:
    return AdapterError("adapter_storage_unavailable", f"The adapter cannot be fetched just now: {reason}.")
