"""Adapters on local disk: fetched once, proved by hash, judged by the gate, then immutable until nothing needs them.

A folder `<cache>/<adapter id>/` exists only complete: files are written to `<cache>/.tmp-…`, synced, verified, renamed.
Deleting a folder that vLLM may still read kills its engine for every tenant, so what is pinned is never deleted; who
pins is the residency's matter. Nothing found on disk at start is trusted before its first use has hashed it again.
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import shutil
import time
from collections import Counter, OrderedDict
from pathlib import Path
from tempfile import mkdtemp
from typing import Protocol

from inference.problems import AdapterError
from service.contracts.ids import is_adapter_id
from service.contracts.manifest import MANIFEST, AdapterManifest, ManifestFile, adapter_id_of, canonical_json
from service.contracts.replica import AdapterSource

logger = logging.getLogger("weft.cache")

DOWNLOADS = 2
ATTEMPTS = 3
MISS_SECONDS = 5.0
INVALID_SECONDS = 300.0
_VERDICTS_KEPT = 1024
_TEMPORARY = ".tmp-"
_FULL = {errno.ENOSPC, errno.EDQUOT}


class Source(Protocol):
    async def describe(self, adapter: str) -> AdapterSource: ...
    async def download(self, url: str, file: ManifestFile, target: Path) -> None: ...


class Judge(Protocol):
    """Raises AdapterError where an adapter must not be served: by manifest before the fetch, by files after it."""

    def check_manifest(self, manifest: AdapterManifest) -> None: ...
    def check_files(self, folder: Path, manifest: AdapterManifest) -> None: ...


class AdapterCache:
    """Single flight per adapter, two downloads at a time, least recently used deleted first."""

    def __init__(self, root: Path, source: Source, gate: Judge, *, budget: int, fetch_seconds: float) -> None:
        self._root = root.absolute()
        self._source = source
        self._gate = gate
        self._budget = budget
        self._fetch_seconds = fetch_seconds
        self._downloads = asyncio.Semaphore(DOWNLOADS)
        self._flights: dict[str, asyncio.Task[Path]] = {}
        self._verdicts: OrderedDict[str, tuple[float, AdapterError]] = OrderedDict()
        self._pins: Counter[str] = Counter()
        self._proved: dict[str, tuple[tuple[int, int], ...]] = {}
        self._reserved: dict[str, int] = {}
        self._sizes = self._scan()

    @property
    def disk_bytes(self) -> int:
        return sum(self._sizes.values())

    def holds(self, adapter: str) -> bool:
        return adapter in self._sizes

    @property
    def adapters(self) -> list[str]:
        return list(self._sizes)

    def pin(self, adapter: str) -> None:
        """Keeps the adapter's folder, now or once it exists, until the matching unpin."""
        self._pins[adapter] += 1

    def unpin(self, adapter: str) -> None:
        self._pins[adapter] -= 1
        if self._pins[adapter] <= 0:
            del self._pins[adapter]
            self._touch(adapter)

    async def materialise(self, adapter: str) -> Path:
        """The adapter's folder, complete and proved. A caller that leaves does not end a fetch that others await."""
        flight = self._flights.get(adapter)
        if flight is None:
            self._raise_known_verdict(adapter)
            flight = asyncio.create_task(self._bring(adapter), name=f"fetch-{adapter[:12]}")
            self._flights[adapter] = flight
            flight.add_done_callback(lambda done: self._landed(adapter, done))
        return await asyncio.shield(flight)

    async def delete(self, adapter: str) -> bool:
        """Deletes the adapter's files unless they are pinned or being fetched; says whether they are gone."""
        if adapter in self._flights or adapter in self._pins:
            return False
        if adapter in self._sizes:
            self._forget(adapter)
            await asyncio.to_thread(_remove, self._root / adapter)
        return True

    async def close(self) -> None:
        """Ends running fetches; each clears its temporary folder."""
        for flight in (flights := list(self._flights.values())):
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    # -- one flight ---------------------------------------------------------------------------------------------------

    async def _bring(self, adapter: str) -> Path:
        folder = self._root / adapter
        if adapter in self._sizes and await self._still_good(adapter, folder):
            self._touch(adapter)
            return folder
        async with self._downloads:
            try:
                async with asyncio.timeout(self._fetch_seconds):
                    await self._fetch(adapter, folder)
            except TimeoutError as error:
                seconds = f"{self._fetch_seconds:g} s"
                raise AdapterError(
                    "adapter_storage_unavailable", f"Fetching the adapter took over {seconds}."
                ) from error
        return folder

    async def _still_good(self, adapter: str, folder: Path) -> bool:
        """Full hashes at the first use in this process, sizes and times after that.

        A damaged copy is deleted: nobody asks for an adapter's folder while vLLM knows the adapter.
        """
        try:
            if self._proved.get(adapter) == _stamps(folder):
                return True
            manifest = await asyncio.to_thread(_verified_manifest, adapter, folder)
            await asyncio.to_thread(self._gate.check_files, folder, manifest)
            self._proved[adapter] = _stamps(folder)
            return True
        except (OSError, ValueError) as error:
            logger.warning("adapter %s on disk is damaged (%s); fetching it again", adapter, type(error).__name__)
            self._forget(adapter)
            await asyncio.to_thread(_remove, folder)
            return False

    async def _fetch(self, adapter: str, folder: Path) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                source = await self._source.describe(adapter)
                await self._fetch_once(adapter, source, folder)
                break
            except AdapterError as error:
                if attempt == ATTEMPTS or error.problem not in ("adapter_corrupt", "adapter_storage_unavailable"):
                    raise
            except OSError as error:
                raise _disk_problem(error) from error
            await asyncio.sleep(0.2 * attempt)

    async def _fetch_once(self, adapter: str, source: AdapterSource, folder: Path) -> None:
        self._gate.check_manifest(source.manifest)
        size = sum(file.size for file in source.manifest.files)
        await self._make_room(adapter, size)
        temporary = Path(mkdtemp(prefix=_TEMPORARY, dir=self._root))
        try:
            for file in source.manifest.files:
                await self._source.download(source.urls[file.path], file, temporary / file.path)
            await self._commit(adapter, source.manifest, temporary, folder)
            self._sizes[adapter] = size
            self._proved[adapter] = _stamps(folder)
        finally:
            del self._reserved[adapter]
            # Cancellation must not leave a partial folder behind; this is a handful of unlinks.
            shutil.rmtree(temporary, ignore_errors=True)

    async def _commit(self, adapter: str, manifest: AdapterManifest, temporary: Path, folder: Path) -> None:
        await asyncio.to_thread(self._gate.check_files, temporary, manifest)
        await asyncio.to_thread(_publish, canonical_json(manifest), temporary, folder)

    async def _make_room(self, adapter: str, size: int) -> None:
        if size > self._budget:
            raise AdapterError("adapter_invalid", f"The adapter's {size} bytes exceed the replica's whole cache.")
        self._reserved[adapter] = size
        try:
            for candidate in list(self._sizes):
                if self.disk_bytes + sum(self._reserved.values()) <= self._budget:
                    return
                if candidate != adapter:
                    await self.delete(candidate)
            if self.disk_bytes + sum(self._reserved.values()) > self._budget:
                raise AdapterError("no_capacity", "The replica's disk cache is full of adapters in use.")
        except BaseException:
            del self._reserved[adapter]
            raise

    # -- bookkeeping --------------------------------------------------------------------------------------------------

    def _landed(self, adapter: str, flight: asyncio.Task[Path]) -> None:
        del self._flights[adapter]
        error = None if flight.cancelled() else flight.exception()
        if not isinstance(error, AdapterError):
            return
        logger.warning("adapter %s: %s: %s", adapter, error.problem, error.message)
        # Only what cannot change soon is remembered: a miss for seconds, a verdict on immutable bytes for minutes.
        seconds = {"adapter_not_found": MISS_SECONDS, "adapter_invalid": INVALID_SECONDS}.get(error.problem)
        if seconds is not None:
            self._verdicts[adapter] = (time.monotonic() + seconds, error)
            if len(self._verdicts) > _VERDICTS_KEPT:
                self._verdicts.popitem(last=False)

    def _raise_known_verdict(self, adapter: str) -> None:
        until, error = self._verdicts.get(adapter, (0.0, None))
        if error is None:
            return
        if time.monotonic() < until:
            raise AdapterError(error.problem, error.message)
        del self._verdicts[adapter]

    def _touch(self, adapter: str) -> None:
        """Most recently used; the folder's time carries the order over a restart."""
        if adapter in self._sizes:
            self._sizes[adapter] = self._sizes.pop(adapter)
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._root / adapter)

    def _forget(self, adapter: str) -> None:
        self._sizes.pop(adapter, None)
        self._proved.pop(adapter, None)

    def _scan(self) -> dict[str, int]:
        """What a former process left: complete folders oldest first; temporary ones are deleted."""
        self._root.mkdir(parents=True, exist_ok=True)
        found: list[tuple[float, str, int]] = []
        for entry in self._root.iterdir():
            if entry.name.startswith(_TEMPORARY):
                _remove(entry)
            elif is_adapter_id(entry.name) and entry.is_dir():
                size = sum(file.stat().st_size for file in entry.iterdir() if file.name != MANIFEST)
                found.append((entry.stat().st_mtime, entry.name, size))
        return {name: size for _, name, size in sorted(found)}


def _verified_manifest(adapter: str, folder: Path) -> AdapterManifest:
    """Raises ValueError or OSError unless every byte on disk is what the id says."""
    manifest = AdapterManifest.model_validate_json((folder / MANIFEST).read_bytes())
    if adapter_id_of(manifest) != adapter:
        raise ValueError("manifest")
    for file in manifest.files:
        with (folder / file.path).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != file.sha256:
            raise ValueError(file.path)
    return manifest


def _stamps(folder: Path) -> tuple[tuple[int, int], ...]:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    return tuple((entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries)


def _publish(manifest: bytes, temporary: Path, folder: Path) -> None:
    (temporary / MANIFEST).write_bytes(manifest)
    for path in (temporary / MANIFEST, temporary):
        _sync(path)
    temporary.chmod(0o755)
    if folder.exists():
        _remove(folder)
    temporary.rename(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    """Renamed first, so that a crash between two unlinks never leaves half an adapter under its own name."""
    if not folder.name.startswith(_TEMPORARY):
        doomed = folder.with_name(f"{_TEMPORARY}{folder.name}-{time.monotonic_ns()}")
        folder.rename(doomed)
        folder = doomed
    shutil.rmtree(folder, ignore_errors=True)


def _disk_problem(error: OSError) -> AdapterError:
    if error.errno in _FULL:
        return AdapterError(
            "no_capacity", "The replica's disk is full; it needs space or a smaller WEFT_REPLICA_CACHE_BYTES."
        )
    return AdapterError(
        "adapter_storage_unavailable", f"The replica cannot write its cache: {error.strerror or error}."
    )
