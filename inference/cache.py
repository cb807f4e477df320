"""Adapters on local disk: fetched once, proved by hash, judged by the gate, then immutable until nothing needs them.

A folder `<cache>/<adapter id>/` exists only complete: files are written beside it, verified, then renamed. Deleting a
folder that vLLM may still read kills its engine for every tenant, so what is pinned is never deleted; who pins is the
residency's matter. Nothing found on disk at start is trusted before its first use has hashed it again.
"""

import asyncio
import contextlib
import logging
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Protocol

from inference import folders
from inference.fair_semaphore import FairSemaphore
from inference.metrics import Metrics
from inference.problems import AdapterError
from inference.verdicts import Verdicts
from inference.waits import LoadClock
from service.contracts.manifest import AdapterManifest, ManifestFile
from service.contracts.replica import AdapterSource

logger = logging.getLogger("weft.cache")

DOWNLOADS = 2
KEPT_DOWNLOADS = 1
"""One more, for a tenant that has none: its adapter does not wait behind another tenant's crowd."""
ATTEMPTS = 3
RETRY_SECONDS = 0.1


class NoRoom(AdapterError):
    """The disk budget is used up by adapters that may not go now."""

    def __init__(self) -> None:
        super().__init__("no_capacity", "The replica's disk cache is full of adapters in use.")


class Source(Protocol):
    async def describe(self, adapter: str) -> AdapterSource: ...
    async def download(self, url: str, file: ManifestFile, target: Path) -> None: ...


class Judge(Protocol):
    """Raises AdapterError where an adapter must not be served: by manifest before the fetch, by files after it."""

    def check_manifest(self, manifest: AdapterManifest) -> None: ...
    def check_files(self, folder: Path, manifest: AdapterManifest) -> None: ...


class AdapterCache:
    """Single flight per adapter, few downloads at a time and fair to tenants, least recently used deleted first."""

    def __init__(
        self, root: Path, source: Source, gate: Judge, metrics: Metrics, *, budget: int, fetch_seconds: float
    ) -> None:
        self._root = root.absolute()
        self._source = source
        self._gate = gate
        self._metrics = metrics
        self._budget = budget
        self._fetch_seconds = fetch_seconds
        self._downloads = FairSemaphore(DOWNLOADS, kept=KEPT_DOWNLOADS)
        self._flights: dict[str, asyncio.Task[Path]] = {}
        self.verdicts = Verdicts()
        self.clock = LoadClock()
        self._pins: Counter[str] = Counter()
        self._wants: Counter[str] = Counter()
        self._proved: dict[str, folders.Stamps] = {}
        self._reserved: dict[str, int] = {}
        self._sizes = folders.scan(self._root)

    @property
    def disk_bytes(self) -> int:
        return sum(self._sizes.values())

    def holds(self, adapter: str) -> bool:
        return adapter in self._sizes

    @property
    def adapters(self) -> list[str]:
        """Least recently used first."""
        return list(self._sizes)

    def pin(self, adapter: str) -> None:
        """Keeps the adapter's folder, now or once it exists, until the matching unpin."""
        self._pins[adapter] += 1

    def unpin(self, adapter: str) -> None:
        self._pins[adapter] -= 1
        if self._pins[adapter] <= 0:
            del self._pins[adapter]
            self._touch(adapter)

    def want(self, adapter: str) -> None:
        """Keeps the adapter's folder from making room for a prefetch; a request whose turn it is may still have it."""
        self._wants[adapter] += 1

    def unwant(self, adapter: str) -> None:
        self._wants[adapter] -= 1
        if self._wants[adapter] <= 0:
            del self._wants[adapter]

    async def materialise(self, adapter: str, tenant: str = "") -> Path:
        """The adapter's folder, complete and proved. A caller that leaves does not end a fetch that others await."""
        flight = self._flights.get(adapter)
        if flight is None:
            self.verdicts.check(adapter)
            flight = asyncio.create_task(self._bring(adapter, tenant), name=f"fetch-{adapter[:12]}")
            self._flights[adapter] = flight
            flight.add_done_callback(lambda done: self._landed(adapter, done))
        return await asyncio.shield(flight)

    async def delete(self, adapter: str) -> bool:
        """Deletes the adapter's files unless they are pinned or being fetched; says whether they are gone."""
        if adapter in self._flights or adapter in self._pins:
            return False
        if adapter in self._sizes:
            self._forget(adapter)
            # Out of the way before anybody can fetch it anew; that it takes time is the unlinking's.
            with contextlib.suppress(FileNotFoundError):
                doomed = folders.set_aside(self._root / adapter)
                await asyncio.to_thread(folders.remove, doomed)
        return True

    async def close(self) -> None:
        """Ends running fetches; each clears its temporary folder."""
        for flight in (flights := list(self._flights.values())):
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    # -- one flight ---------------------------------------------------------------------------------------------------

    async def _bring(self, adapter: str, tenant: str) -> Path:
        folder = self._root / adapter
        if adapter in self._sizes and await self._still_good(adapter, folder):
            self._touch(adapter)
            return folder
        async with self._downloads.held(tenant):
            with self._metrics.loading("store"):
                await self._fetch_in_time(adapter, folder)
        return folder

    async def _fetch_in_time(self, adapter: str, folder: Path) -> None:
        try:
            async with asyncio.timeout(self._fetch_seconds):
                await self._fetch(adapter, folder)
        except TimeoutError as error:
            message = f"Fetching the adapter took over {self._fetch_seconds:g} s."
            raise AdapterError("adapter_storage_unavailable", message) from error

    async def _still_good(self, adapter: str, folder: Path) -> bool:
        """Full hashes at the first use in this process, sizes and times after that.

        A damaged copy is deleted: nobody asks for an adapter's folder while vLLM knows the adapter.
        """
        try:
            if self._proved.get(adapter) == folders.stamps(folder):
                return True
            with self.clock.loading(adapter):
                manifest = await asyncio.to_thread(folders.proved_manifest, adapter, folder)
                await asyncio.to_thread(self._gate.check_files, folder, manifest)
            self._proved[adapter] = folders.stamps(folder)
            return True
        except (OSError, ValueError) as error:
            logger.warning("adapter %s on disk is damaged (%s); fetching it again", adapter, type(error).__name__)
            self._forget(adapter)
            if folder.exists():
                await asyncio.to_thread(folders.remove, folder)
            return False

    async def _fetch(self, adapter: str, folder: Path) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self.clock.loading(adapter):
                    source = await self._source.describe(adapter)
                await self._fetch_once(adapter, source, folder)
                break
            except AdapterError as error:
                if attempt == ATTEMPTS or error.problem not in ("adapter_corrupt", "adapter_storage_unavailable"):
                    raise
            except OSError as error:
                raise folders.disk_problem(error) from error
            await asyncio.sleep(RETRY_SECONDS * attempt)

    async def _fetch_once(self, adapter: str, source: AdapterSource, folder: Path) -> None:
        manifest = source.manifest
        self._gate.check_manifest(manifest)
        size = sum(file.size for file in manifest.files)
        await self._make_room(adapter, size)
        temporary: Path | None = None
        try:
            temporary = folders.temporary(self._root)
            with self.clock.loading(adapter):
                await self._download(source, temporary)
                await asyncio.to_thread(self._admit, manifest, temporary, folder)
            self._sizes[adapter] = size
            self._proved[adapter] = folders.stamps(folder)
        finally:
            del self._reserved[adapter]
            if temporary is not None:
                # Cancellation must not leave a partial folder behind; this is a handful of unlinks.
                shutil.rmtree(temporary, ignore_errors=True)

    async def _download(self, source: AdapterSource, target: Path) -> None:
        try:
            async with asyncio.TaskGroup() as downloads:
                for file in source.manifest.files:
                    downloads.create_task(self._source.download(source.urls[file.path], file, target / file.path))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def _admit(self, manifest: AdapterManifest, temporary: Path, folder: Path) -> None:
        self._gate.check_files(temporary, manifest)
        folders.publish(manifest, temporary, folder)

    async def _make_room(self, adapter: str, size: int) -> None:
        """Deletes the least recently used; what a waiting request wants goes only for one that is in no queue."""
        if size > self._budget:
            raise AdapterError("adapter_invalid", f"The adapter's {size} bytes exceed the replica's whole cache.")
        while self.disk_bytes + sum(self._reserved.values()) + size > self._budget:
            doomed = self._least_needed(adapter)
            if doomed is None:
                await self._landing(adapter)
            elif await self.delete(doomed):
                self._metrics.evicted("disk")
        self._reserved[adapter] = size

    def _least_needed(self, newcomer: str) -> str | None:
        """Chosen anew after each deletion, during which requests come and go."""
        free = [name for name in self._sizes if name not in self._pins and name not in self._flights]
        # One that has its turn is pinned, and only it may displace what others wait for.
        wanted = free if newcomer in self._pins else []
        return next((name for name in free if name not in self._wants), next(iter(wanted), None))

    async def _landing(self, newcomer: str) -> None:
        """Until one of those under way has come, which can then go again; only one that has its turn waits for it."""
        under_way = [self._flights[name] for name in self._reserved]
        if newcomer not in self._pins or not under_way:
            raise NoRoom
        await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)

    # -- bookkeeping --------------------------------------------------------------------------------------------------

    def _landed(self, adapter: str, flight: asyncio.Task[Path]) -> None:
        del self._flights[adapter]
        error = None if flight.cancelled() else flight.exception()
        if isinstance(error, AdapterError) and not isinstance(error, NoRoom):
            logger.warning("adapter %s: %s: %s", adapter, error.problem, error.message)
            self.verdicts.remember(adapter, error)

    def _touch(self, adapter: str) -> None:
        """Most recently used; the folder's time carries the order over a restart."""
        if adapter in self._sizes:
            self._sizes[adapter] = self._sizes.pop(adapter)
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._root / adapter)

    def _forget(self, adapter: str) -> None:
        self._sizes.pop(adapter, None)
        self._proved.pop(adapter, None)
