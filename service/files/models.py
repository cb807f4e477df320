"""Rows of uploaded files and of what was found in them. The bytes lie in the store under `layout.file_key`."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, ForeignKey, and_, func, or_
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base


class FileRow(Base):
    """`deleted_at` of an upload under way lies in the future; `purged_at` says since when the bytes are gone.

    A file of status `uploaded` is still being put together of its parts: it has neither bytes nor a hash yet.
    """

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    status: Mapped[str]
    status_details: Mapped[str | None]
    examples: Mapped[int] = mapped_column(default=0)
    example_format: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    purged_at: Mapped[datetime | None]

    @classmethod
    def live(cls) -> ColumnElement[bool]:
        """Whether a file can be seen and used: complete, not deleted, not expired."""
        return and_(cls.deleted_at.is_(None), or_(cls.expires_at.is_(None), cls.expires_at > func.now()))


class ReportRow(Base):
    """What was found in a content, perhaps beside another, under the rules of one release."""

    __tablename__ = "file_reports"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(primary_key=True)
    purpose: Mapped[str] = mapped_column(primary_key=True)
    compared_sha256: Mapped[str] = mapped_column(primary_key=True, default="")
    tokenizer: Mapped[str] = mapped_column(primary_key=True, default="")
    """The sha256 of that which counted the tokens; empty where they are estimated."""
    rules: Mapped[int] = mapped_column(primary_key=True)
    report: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
