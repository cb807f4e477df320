"""Where a replica reads adapters from: the service for the manifest and presigned URLs, object storage for the bytes.

Turns every way a network can fail into an AdapterError; retries, caching and verification across files are the cache's.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from pydantic import ValidationError

from inference.download import CONNECT_SECONDS, STALL_SECONDS, Downloads
from inference.problems import AdapterError, unavailable
from inference.settings import ReplicaSettings
from service.contracts.ids import AdapterId
from service.contracts.manifest import ManifestFile, adapter_id_of
from service.contracts.replica import AdapterSource


class AdapterSources:
    """One HTTP session for the service, made lazily inside the event loop, and downloads from storage."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._service = settings.service_url.rstrip("/")
        self._token = settings.replica_token.get_secret_value()
        self._session: aiohttp.ClientSession | None = None
        self._downloads = Downloads()

    async def describe(self, adapter: str) -> AdapterSource:
        """The adapter's manifest, proved to hash to its id, and a URL for each of its files."""
        url = f"{self._service}/internal/adapters/{adapter}"
        async with self._get(url, {"Authorization": f"Bearer {self._token}"}) as response:
            if response.status == 404:
                raise AdapterError("adapter_not_found", "This adapter does not exist.")
            if response.status != 200:
                raise unavailable(f"the service answered {response.status}")
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
        await self._downloads.fetch(url, file, target)

    async def close(self) -> None:
        self._downloads.close()
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _get(self, url: str, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=STALL_SECONDS)
            self._session = aiohttp.ClientSession(timeout=timeout)
        try:
            async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise unavailable(type(error).__name__) from error
