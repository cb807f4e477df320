"""What the public API takes and shows of imports and exports."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from service.listing import Item
from service.transfers.models import TransferRow

FileId = Annotated[str, Field(min_length=1, max_length=64)]


class Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceFiles(Body):
    """The two files that PEFT's `save_pretrained()` writes, uploaded with purpose `user_data`."""

    config: Annotated[FileId, Field(alias=ADAPTER_CONFIG)]
    weights: Annotated[FileId, Field(alias=ADAPTER_WEIGHTS)]


class CreateImport(Body):
    """Either `files` or `source`, an `s3://bucket/prefix` that the operator allows."""

    adapter: Annotated[str, Field(min_length=1, max_length=64)]
    files: SourceFiles | None = None
    source: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    base_model: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    @model_validator(mode="after")
    def _comes_from_one_place(self) -> "CreateImport":
        if (self.files is None) == (self.source is None):
            raise ValueError("give either 'files' or 'source'")
        return self


class CreateExport(Body):
    """`peft` gives the adapter's own files at once, `merged` whole weights once a worker has made them."""

    format: Literal["peft", "merged"]


class Problem(BaseModel):
    code: str
    message: str


class Import(Item):
    """`version` is of `adapter`, and `changes` what had to be done to the files, once it has succeeded."""

    object: Literal["adapter.import"] = "adapter.import"
    status: str
    adapter: str
    base_model: str
    version: int | None
    model: str | None
    changes: list[str]
    error: Problem | None
    created_at: int
    finished_at: int | None

    @classmethod
    def of(cls, row: TransferRow) -> "Import":
        return cls(
            id=row.id,
            status=row.status,
            adapter=row.adapter,
            base_model=row.base_model,
            version=row.version,
            model=f"{row.adapter}@v{row.version}" if row.version else None,
            changes=row.changes or [],
            error=Problem.model_validate(row.error) if row.error else None,
            created_at=int(row.created_at.timestamp()),
            finished_at=_seconds(row.finished_at),
        )


class ExportedFile(BaseModel):
    path: str
    bytes: int
    sha256: str


class Export(Item):
    """`files` can be read until `expires_at`; then its status is `expired`."""

    object: Literal["adapter.export"] = "adapter.export"
    status: str
    adapter: str
    version: int
    format: str
    files: list[ExportedFile]
    error: Problem | None
    created_at: int
    finished_at: int | None
    expires_at: int | None

    @classmethod
    def of(cls, row: TransferRow) -> "Export":
        expired = row.expires_at is not None and row.expires_at <= datetime.now(UTC)
        assert row.version is not None
        return cls(
            id=row.id,
            status="expired" if expired else row.status,
            adapter=row.adapter,
            version=row.version,
            format=row.kind,
            files=[ExportedFile.model_validate(file) for file in row.files or ()] if not expired else [],
            error=Problem.model_validate(row.error) if row.error else None,
            created_at=int(row.created_at.timestamp()),
            finished_at=_seconds(row.finished_at),
            expires_at=_seconds(row.expires_at),
        )


def _seconds(moment: datetime | None) -> int | None:
    return int(moment.timestamp()) if moment else None
