"""The one door to S3-compatible storage, over boto3. Knows keys as strings; `layout` knows which.

Only the service holds credentials. Everyone else gets presigned URLs made here, each for one object and a few minutes.
Calls block: use them through `asyncio.to_thread` beside an event loop.
"""

# boto3 ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import base64
import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel, ConfigDict, SecretStr

if TYPE_CHECKING:
    from collections.abc import Callable


ONE_PART_AT_A_TIME = TransferConfig(use_threads=False)
"""Else each upload has ten parts of 8 MiB in memory; callers are threads already."""


class StoreSettings(BaseModel):
    """Where the objects live. Path-style addressing, so that any S3-compatible endpoint works."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str | None = None
    region: str = "us-east-1"
    bucket: str = "weft"
    access_key: SecretStr | None = None
    secret_key: SecretStr | None = None
    public_endpoint: str | None = None
    """What presigned URLs name, where workers reach the store by another address than the service does."""


class Readable(Protocol):
    """Gives `n` bytes at a call, fewer only at the end."""

    def read(self, n: int = -1, /) -> bytes: ...


class StoreError(Exception):
    """The object store could not do it now; the same call may succeed later."""


class ObjectMissing(StoreError):
    """There is no such object."""


class ObjectStore:
    """One bucket. Raises ObjectMissing for an absent key and StoreError for everything else."""

    def __init__(self, settings: StoreSettings) -> None:
        self._bucket = settings.bucket
        self._client: Any = _client(settings, settings.endpoint)
        self._signer: Any = _client(settings, settings.public_endpoint or settings.endpoint)

    def ensure_bucket(self) -> None:
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except ClientError:
            self._call(self._client.create_bucket, Bucket=self._bucket)
        except BotoCoreError as error:
            raise StoreError(str(error)) from error

    def put(self, key: str, body: bytes) -> None:
        """Stores `body`; Content-MD5 makes the store refuse a body damaged on the way."""
        digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        self._call(self._client.put_object, Bucket=self._bucket, Key=key, Body=body, ContentMD5=digest)

    def put_stream(self, key: str, body: Readable) -> None:
        """Stores what `body` reads, of any size, in parts, without holding it in memory.

        Nothing appears under the key where reading raises.
        """
        self._call(self._client.upload_fileobj, body, self._bucket, key, Config=ONE_PART_AT_A_TIME)

    def get(self, key: str) -> bytes:
        return self._call(self._client.get_object, Bucket=self._bucket, Key=key)["Body"].read()

    def open(self, key: str, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        """The object in pieces. Raises at the call, not at the first piece, where the key is absent."""
        body = self._call(self._client.get_object, Bucket=self._bucket, Key=key)["Body"]
        return iter(lambda: self._call(body.read, chunk_bytes), b"")

    def size(self, key: str) -> int:
        return int(self._call(self._client.head_object, Bucket=self._bucket, Key=key)["ContentLength"])

    def keys(self, prefix: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        return [item["Key"] for page in self._call(lambda: list(pages)) for item in page.get("Contents", ())]

    def delete(self, keys: Iterable[str]) -> None:
        """Deletes what exists of `keys`; absent ones are no error."""
        for key in keys:
            self._call(self._client.delete_object, Bucket=self._bucket, Key=key)

    def abort_stale_puts(self, prefix: str, before: datetime) -> int:
        """Frees the bytes of `put_stream`s whose process died before they were whole; gives how many there were."""
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=prefix)
        try:
            begun = [item for page in self._call(lambda: list(pages)) for item in page.get("Uploads", ())]
        except ObjectMissing:
            return 0  # what some stores say of a bucket in which none was ever begun
        stale = [item for item in begun if item["Initiated"] < before]
        for item in stale:
            with contextlib.suppress(ObjectMissing):
                self._call(
                    self._client.abort_multipart_upload,
                    Bucket=self._bucket,
                    Key=item["Key"],
                    UploadId=item["UploadId"],
                )
        return len(stale)

    def presign_get(self, key: str, seconds: int) -> str:
        return self._signer.generate_presigned_url(
            "get_object", Params={"Bucket": self._bucket, "Key": key}, ExpiresIn=seconds
        )

    def presign_put(self, key: str, seconds: int) -> str:
        return self._signer.generate_presigned_url(
            "put_object", Params={"Bucket": self._bucket, "Key": key}, ExpiresIn=seconds
        )

    def _call(self, operation: "Callable[..., Any]", *args: Any, **kwargs: Any) -> Any:
        try:
            return operation(*args, **kwargs)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in {"NoSuchKey", "NoSuchUpload", "404", "NotFound"}:
                raise ObjectMissing(str(error)) from error
            raise StoreError(str(error)) from error
        except (BotoCoreError, OSError) as error:
            raise StoreError(str(error)) from error


def _client(settings: StoreSettings, endpoint: str | None) -> Any:
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        connect_timeout=3,
        read_timeout=30,
        retries={"max_attempts": 4, "mode": "standard"},
        max_pool_connections=32,
        # Stores other than AWS's own refuse or ignore the newer checksum headers.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=settings.region,
        aws_access_key_id=settings.access_key.get_secret_value() if settings.access_key else None,
        aws_secret_access_key=settings.secret_key.get_secret_value() if settings.secret_key else None,
        config=config,
    )
