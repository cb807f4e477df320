"""Bodies of the uploads routes, exactly OpenAI's."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.files.models import FileRow
from service.files.schemas import File, Purpose
from service.uploads.models import PartRow, UploadRow

MAX_PARTS = 10_000

Status = Literal["pending", "completed", "cancelled", "expired"]
Name = Annotated[str, Field(min_length=1, max_length=255)]


class ExpiresAfter(BaseModel):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2592000)


class CreateUpload(BaseModel):
    model_config = ConfigDict(extra="ignore")

    bytes: int = Field(ge=1, strict=True)
    filename: Name
    mime_type: Name
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class CompleteUpload(BaseModel):
    model_config = ConfigDict(extra="ignore")

    part_ids: list[Annotated[str, Field(max_length=64)]] = Field(min_length=1, max_length=MAX_PARTS)
    md5: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{32}$")


class Upload(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Status
    file: File | None = None

    @classmethod
    def of(cls, row: UploadRow, status: Status, file: FileRow | None = None) -> "Upload":
        return cls(
            id=row.id,
            bytes=row.bytes,
            created_at=_seconds(row.created_at),
            expires_at=_seconds(row.expires_at),
            filename=row.filename,
            purpose=row.purpose,
            status=status,
            file=None if file is None else File.of(file),
        )


class Part(BaseModel):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str

    @classmethod
    def of(cls, row: PartRow) -> "Part":
        return cls(id=row.id, created_at=_seconds(row.created_at), upload_id=row.upload_id)


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
