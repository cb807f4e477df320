"""Whether what a worker says it has stored is there, whole. The store is asked in no transaction."""

import asyncio
from collections.abc import Iterable

from service.contracts.manifest import MANIFEST, AdapterManifest, CheckpointManifest, ManifestFile, canonical_json
from service.contracts.store import ObjectMissing, ObjectStore
from service.errors import InvalidRequest

MAX_FILES = 64


async def verify(store: ObjectStore, prefix: str, manifest: AdapterManifest | CheckpointManifest) -> None:
    """Looks at every object itself; raises InvalidRequest where one is missing or of another size or content."""
    await verify_files(store, prefix, manifest.files)
    try:
        stored = await asyncio.to_thread(store.get, prefix + MANIFEST)
    except ObjectMissing as error:
        raise _incomplete(f"{MANIFEST} is not stored") from error
    if stored != canonical_json(manifest):
        raise _incomplete(f"the stored {MANIFEST} is not the one that was sent")


async def verify_files(store: ObjectStore, prefix: str, files: Iterable[ManifestFile]) -> None:
    """The same of files without a manifest."""
    await asyncio.gather(*(_verify_size(store, prefix, file.path, file.size) for file in files))


def check_names(files: Iterable[ManifestFile], most: int = MAX_FILES) -> None:
    names = [file.path for file in files]
    if not names or len(names) > most or len(set(names)) < len(names) or MANIFEST in names:
        raise InvalidRequest(
            f"A manifest lists 1 to {most} different files and not itself.", code="invalid_manifest", param="files"
        )


async def _verify_size(store: ObjectStore, prefix: str, path: str, size: int) -> None:
    try:
        stored = await asyncio.to_thread(store.size, prefix + path)
    except ObjectMissing as error:
        raise _incomplete(f"{path} is not stored") from error
    if stored != size:
        raise _incomplete(f"{path} has {stored} bytes instead of {size}")


def _incomplete(reason: str) -> InvalidRequest:
    return InvalidRequest(f"The upload is not complete: {reason}. Upload it again.", code="upload_incomplete")
