"""Rows of uploads in parts. The parts' bytes lie in the store under `layout.upload_prefix`, one object for each."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, ForeignKeyConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base


class UploadRow(Base):
    """`assembled_at` says since when the file is whole, `purged_at` since when the parts are gone.

    Whoever puts a large file together in the background holds it until `assembling_until`.
    """

    __tablename__ = "uploads"
    __table_args__ = (ForeignKeyConstraint(["project_id", "file_id"], ["files.project_id", "files.id"]),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str]
    purpose: Mapped[str]
    mime_type: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    lifetime_seconds: Mapped[int | None]
    status: Mapped[str] = mapped_column(default="pending")
    part_ids: Mapped[list[str] | None] = mapped_column(JSONB(none_as_null=True))
    md5: Mapped[str | None]
    file_id: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    assembling_until: Mapped[datetime | None]
    assembled_at: Mapped[datetime | None]
    purged_at: Mapped[datetime | None]


class PartRow(Base):
    """Written before its bytes are stored, so that no bytes are without a row; `stored_at` says that they are."""

    __tablename__ = "upload_parts"
    __table_args__ = (ForeignKeyConstraint(["project_id", "upload_id"], ["uploads.project_id", "uploads.id"]),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    upload_id: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    stored_at: Mapped[datetime | None]
