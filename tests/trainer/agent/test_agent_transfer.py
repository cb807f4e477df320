"""Transfers against a real S3 endpoint and its presigned URLs."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from service.contracts.manifest import ManifestFile
from service.contracts.store import ObjectStore
from trainer.transfer import (
    Corrupt,
    ObjectGone,
    StoreAway,
    UrlRefused,
    digest,
    digest_of,
    download,
    new_store_session,
    upload,
)

BODY = random.Random(5).randbytes(3_000_001)
PROMISED = ManifestFile(path="weights.bin", sha256=hashlib.sha256(BODY).hexdigest(), size=len(BODY))


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with new_store_session() as session:
        yield session


async def test_a_file_goes_up_and_comes_down_unchanged(
    session: aiohttp.ClientSession, object_store: ObjectStore, tmp_path: Path
) -> None:
    source, target = tmp_path / "source.bin", tmp_path / "target.bin"
    source.write_bytes(BODY)
    await upload(session, object_store.presign_put("up/file", 60), source, digest(source), patience=10)
    await download(session, object_store.presign_get("up/file", 60), PROMISED, target, patience=10)
    assert target.read_bytes() == BODY
    assert object_store.get("up/file") == BODY


async def test_bytes_at_hand_go_up_too(session: aiohttp.ClientSession, object_store: ObjectStore) -> None:
    await upload(session, object_store.presign_put("up/bytes", 60), b"{}", digest_of(b"{}"), patience=10)
    assert object_store.get("up/bytes") == b"{}"


@pytest.mark.parametrize(
    "stored", [BODY[:-1], BODY + b"x", BODY[:9] + b"?" + BODY[10:]], ids=["cut", "longer", "flipped"]
)
async def test_an_object_that_is_not_what_was_promised_is_never_kept(
    session: aiohttp.ClientSession, object_store: ObjectStore, tmp_path: Path, stored: bytes
) -> None:
    key = f"bad/{hashlib.sha256(stored).hexdigest()}"
    object_store.put(key, stored)
    with pytest.raises(Corrupt):
        await download(session, object_store.presign_get(key, 60), PROMISED, tmp_path / "target.bin", patience=10)
    assert not list(tmp_path.iterdir())


async def test_an_absent_object_is_told_apart_from_an_absent_store(
    session: aiohttp.ClientSession, object_store: ObjectStore, tmp_path: Path
) -> None:
    with pytest.raises(ObjectGone):
        await download(session, object_store.presign_get("no/such", 60), PROMISED, tmp_path / "a", patience=10)
    with pytest.raises(StoreAway) as caught:
        await download(session, "http://127.0.0.1:9/file?signature=secret", PROMISED, tmp_path / "b", patience=0.3)
    assert "secret" not in str(caught.value)


async def test_a_url_that_has_run_out_is_not_tried_again(
    session: aiohttp.ClientSession, object_store: ObjectStore, tmp_path: Path
) -> None:
    object_store.put("up/late", BODY)
    url = object_store.presign_get("up/late", 1)
    forged = url.replace("X-Amz-Signature=", "X-Amz-Signature=0")
    with pytest.raises(UrlRefused):
        async with asyncio.timeout(5):
            await download(session, forged, PROMISED, tmp_path / "target", patience=60)
