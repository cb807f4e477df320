"""Messages between a trainer's agent and the service about adapters that come and go, under `/internal/transfers`.

| call | request | answer |
|---|---|---|
| POST /internal/transfers/lease | TransferClaim | 200 TransferLease, 204 when there is nothing to do |
| POST /internal/transfers/{id}/renew | TransferRenew | TransferControl |
| POST /internal/transfers/{id}/uploads | TransferUploads | worker.UploadTargets |
| POST /internal/transfers/{id}/finish | TransferFinish | TransferFinished |

Bearer: the worker token. Epochs, fencing and repeated calls are as in `service.contracts.worker`. An import makes an
adapter of foreign files, a merge makes whole weights of an adapter.
"""

from typing import Annotated, Literal

from pydantic import Field

from service.contracts.manifest import AdapterManifest, ManifestFile
from service.contracts.worker import AdapterRef, JobFailure, Message


class TransferClaim(Message):
    worker: str = Field(min_length=1, max_length=128, description="Stable name of the agent, for people.")
    base_model: str
    base_fingerprint: str


class SourceFile(Message):
    """A file as its owner gave it. What lies in a bucket of theirs has no hash that anybody has promised."""

    url: str
    size: int = Field(ge=0, description="Bytes.")
    sha256: str | None = None


class ImportWork(Message):
    type: Literal["import"] = "import"
    files: dict[str, SourceFile] = Field(description="By the name that PEFT gives each.")
    max_rank: int = Field(ge=1, description="Of what replicas serve.")
    chat_template_sha256: str | None


class MergeWork(Message):
    type: Literal["merge"] = "merge"
    adapter: AdapterRef


class TransferLease(Message):
    id: str = Field(pattern=r"^(adimp|adexp)-[A-Za-z0-9]{1,64}$")
    epoch: int = Field(ge=1)
    ttl_seconds: float = Field(gt=0, description="From the moment the service answered.")
    renew_seconds: float = Field(gt=0)
    base_model: str
    base_fingerprint: str
    work: Annotated[ImportWork | MergeWork, Field(discriminator="type")]


class TransferRenew(Message):
    epoch: int


class TransferControl(Message):
    ttl_seconds: float


class TransferUploads(Message):
    """Of an import its adapter's manifest, of a merge its files."""

    epoch: int
    adapter: AdapterManifest | None = None
    files: tuple[ManifestFile, ...] = ()


class TransferFinish(Message):
    """How it ended. `broken` and `released` are tried again; the first counts as the loss of a worker.

    `adapter` comes with an import that succeeded, `files` with such a merge, `failure` with failed and broken.
    """

    epoch: int
    outcome: Literal["succeeded", "failed", "broken", "released"]
    adapter: AdapterManifest | None = None
    files: tuple[ManifestFile, ...] = ()
    changes: tuple[str, ...] = Field(default=(), description="What an import had to change, in words.")
    failure: JobFailure | None = None


class TransferFinished(Message):
    status: str
