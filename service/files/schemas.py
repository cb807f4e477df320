"""Bodies of the files routes, exactly OpenAI's."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.files.models import FileRow
from service.listing import Item, Page

Purpose = Literal["fine-tune", "batch", "user_data", "assistants", "vision", "evals"]


class UploadFields(BaseModel):
    """The fields that accompany the file in the form."""

    model_config = ConfigDict(extra="ignore")

    purpose: Purpose
    anchor: Literal["created_at"] | None = Field(default=None, alias="expires_after[anchor]")
    seconds: int | None = Field(default=None, alias="expires_after[seconds]", ge=3600, le=2592000)

    @model_validator(mode="after")
    def _both_or_neither(self) -> "UploadFields":
        if (self.anchor is None) != (self.seconds is None):
            raise ValueError("'expires_after' needs both 'anchor' and 'seconds'")
        return self


class File(Item):
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str
    status_details: str | None

    @classmethod
    def of(cls, row: FileRow) -> "File":
        return cls(
            id=row.id,
            bytes=row.bytes,
            created_at=_seconds(row.created_at),
            expires_at=None if row.expires_at is None else _seconds(row.expires_at),
            filename=row.filename,
            purpose=row.purpose,
            status=row.status,
            status_details=row.status_details,
        )


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


FilePage = Page[File]


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
