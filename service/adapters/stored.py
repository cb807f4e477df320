"""Whether what a worker says it has stored is there, whole, and of use. The store is asked in no transaction."""

import asyncio
import hashlib
from collections.abc import Iterable

from service.contracts.manifest import (
    ADAPTER_WEIGHTS,
    MANIFEST,
    AdapterManifest,
    CheckpointManifest,
    ManifestFile,
    canonical_json,
)
from service.contracts.servable import MAX_HEADER_BYTES, Unservable, check_scale, pairs_of
from service.contracts.store import ObjectMissing, ObjectStore
from service.contracts.tensor_header import LENGTH_BYTES, BadHeader, parse_header
from service.errors import InvalidRequest

MAX_FILES = 64


async def verify_adapter(store: ObjectStore, prefix: str, manifest: AdapterManifest) -> None:
    """Reads every object; raises InvalidRequest where one is missing or of another size or content.

    Also where no replica would serve the adapter, as far as that can be told without the base.
    """
    beginnings = await asyncio.gather(
        *(asyncio.to_thread(_verified_beginning, store, prefix, file) for file in manifest.files)
    )
    await _verify_manifest(store, prefix, manifest)
    of_name = {file.path: (beginning, file.size) for file, beginning in zip(manifest.files, beginnings, strict=True)}
    try:
        check_scale(manifest.rank, manifest.alpha)
        pairs_of(parse_header(*of_name[ADAPTER_WEIGHTS], MAX_HEADER_BYTES), manifest.rank)
    except BadHeader as error:
        raise _unservable(f"{ADAPTER_WEIGHTS} is not a safetensors file: {error}") from error
    except Unservable as error:
        raise _unservable(str(error)) from error


async def verify_checkpoint(store: ObjectStore, prefix: str, manifest: CheckpointManifest) -> None:
    """Raises InvalidRequest where an object is missing or of another size, or the manifest is another one.

    What is inside them is judged by whoever resumes from them, who has an older checkpoint if need be.
    """
    await verify_sizes(store, prefix, manifest.files)
    await _verify_manifest(store, prefix, manifest)


async def verify_sizes(store: ObjectStore, prefix: str, files: Iterable[ManifestFile]) -> None:
    """Raises InvalidRequest where one is missing or of another size."""
    await asyncio.gather(*(_verify_size(store, prefix, file.path, file.size) for file in files))


def check_names(files: Iterable[ManifestFile], most: int = MAX_FILES) -> None:
    names = [file.path for file in files]
    if not names or len(names) > most or len(set(names)) < len(names) or MANIFEST in names:
        raise InvalidRequest(
            f"A manifest lists 1 to {most} different files and not itself.", code="invalid_manifest", param="files"
        )


def _verified_beginning(store: ObjectStore, prefix: str, file: ManifestFile) -> bytes:
    """What a header may take of an object that is what it should be."""
    digest, size, beginning = hashlib.sha256(), 0, b""
    try:
        for chunk in store.open(prefix + file.path):
            digest.update(chunk)
            size += len(chunk)
            if len(beginning) < LENGTH_BYTES + MAX_HEADER_BYTES:
                beginning += chunk
    except ObjectMissing as error:
        raise _incomplete(f"{file.path} is not stored") from error
    if size != file.size:
        raise _incomplete(f"{file.path} has {size} bytes instead of {file.size}")
    if digest.hexdigest() != file.sha256:
        raise _incomplete(f"{file.path} has another content than its manifest says")
    return beginning


async def _verify_manifest(store: ObjectStore, prefix: str, manifest: AdapterManifest | CheckpointManifest) -> None:
    try:
        stored = await asyncio.to_thread(store.get, prefix + MANIFEST)
    except ObjectMissing as error:
        raise _incomplete(f"{MANIFEST} is not stored") from error
    if stored != canonical_json(manifest):
        raise _incomplete(f"the stored {MANIFEST} is not the one that was sent")


async def _verify_size(store: ObjectStore, prefix: str, path: str, size: int) -> None:
    try:
        stored = await asyncio.to_thread(store.size, prefix + path)
    except ObjectMissing as error:
        raise _incomplete(f"{path} is not stored") from error
    if stored != size:
        raise _incomplete(f"{path} has {stored} bytes instead of {size}")


def _incomplete(reason: str) -> InvalidRequest:
    return InvalidRequest(f"The upload is not complete: {reason}. Upload it again.", code="upload_incomplete")


def _unservable(reason: str) -> InvalidRequest:
    return InvalidRequest(f"This adapter cannot be served: {reason}.", code="adapter_unservable", param="adapter")
