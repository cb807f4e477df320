"""Adapters on their way in and out."""

from typing import Literal

from openai import BaseModel


class TransferError(BaseModel):
    code: str | None = None
    message: str


class AdapterImport(BaseModel):
    """An adapter on its way in. `version` is set when it has succeeded, and `changes` what was done to its files."""

    id: str
    object: Literal["adapter.import"] = "adapter.import"
    status: Literal["queued", "running", "succeeded", "failed"] | str
    adapter: str
    base_model: str
    version: int | None = None
    model: str | None = None
    changes: list[str] = []
    error: TransferError | None = None
    created_at: int
    finished_at: int | None = None


class ExportedFile(BaseModel):
    path: str
    bytes: int
    sha256: str


class AdapterExport(BaseModel):
    """An adapter on its way out. `files` are there when it has succeeded, until `expires_at`."""

    id: str
    object: Literal["adapter.export"] = "adapter.export"
    status: Literal["queued", "running", "succeeded", "failed", "expired"] | str
    adapter: str
    version: int
    format: Literal["peft", "merged"] | str
    files: list[ExportedFile] = []
    error: TransferError | None = None
    created_at: int
    finished_at: int | None = None
    expires_at: int | None = None
