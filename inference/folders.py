"""Adapter folders on disk: how one comes into being, how it is proved, how it goes. Which ones stay is the cache's.

Nothing is synced: a machine that loses power may leave a folder with holes, and the cache hashes every folder in full
before its first use in a process, so such a folder is fetched again. Within one life of the machine a rename is whole.
"""

import errno
import hashlib
import os
import shutil
import time
from pathlib import Path
from tempfile import mkdtemp

from inference.problems import AdapterError
from service.contracts.ids import is_adapter_id
from service.contracts.manifest import MANIFEST, AdapterManifest, adapter_id_of, canonical_json

_TEMPORARY = ".tmp-"
_FULL = {errno.ENOSPC, errno.EDQUOT}

Stamps = tuple[tuple[int, int], ...]


def scan(root: Path) -> dict[str, int]:
    """What a former process left: sizes of complete folders, oldest first; temporary ones are deleted."""
    root.mkdir(parents=True, exist_ok=True)
    found: list[tuple[float, str, int]] = []
    for entry in root.iterdir():
        if entry.name.startswith(_TEMPORARY):
            remove(entry)
        elif is_adapter_id(entry.name) and entry.is_dir() and not entry.is_symlink():
            size = sum(file.lstat().st_size for file in entry.iterdir() if file.name != MANIFEST)
            found.append((entry.stat().st_mtime, entry.name, size))
    return {name: size for _, name, size in sorted(found)}


def temporary(root: Path) -> Path:
    """A new folder beside the complete ones, which `publish` renames."""
    return Path(mkdtemp(prefix=_TEMPORARY, dir=root))


def publish(manifest: AdapterManifest, source: Path, folder: Path) -> None:
    (source / MANIFEST).write_bytes(canonical_json(manifest))
    source.chmod(0o755)
    if folder.exists():
        remove(folder)
    source.rename(folder)


def remove(folder: Path) -> None:
    if not folder.name.startswith(_TEMPORARY):
        folder = set_aside(folder)
    shutil.rmtree(folder, ignore_errors=True)


def set_aside(folder: Path) -> Path:
    """The same folder renamed, so that a crash between two unlinks never leaves half an adapter under its own name."""
    doomed = folder.with_name(f"{_TEMPORARY}{folder.name}-{time.monotonic_ns()}")
    return folder.rename(doomed)


def proved_manifest(adapter: str, folder: Path) -> AdapterManifest:
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


def stamps(folder: Path) -> Stamps:
    """Sizes and times of a folder's files: what changes when somebody changes them."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    return tuple((entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries)


def disk_problem(error: OSError) -> AdapterError:
    if error.errno in _FULL:
        return AdapterError(
            "no_capacity", "The replica's disk is full; it needs space or a smaller WEFT_REPLICA_CACHE_BYTES."
        )
    return AdapterError(
        "adapter_storage_unavailable", f"The replica cannot write its cache: {error.strerror or error}."
    )
