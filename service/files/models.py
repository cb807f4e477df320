"""Rows of uploaded files. The bytes lie in the store under `layout.file_key`."""

from datetime import datetime

from sqlalchemy import BigInteger, ColumnElement, ForeignKey, and_, func, or_
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base


class FileRow(Base):
    """`deleted_at` of an upload under way lies in the future; `purged_at` says since when the bytes are gone."""

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
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    purged_at: Mapped[datetime | None]

    @classmethod
    def live(cls) -> ColumnElement[bool]:
        """Whether a file can be seen and used: complete, not deleted, not expired."""
        return and_(cls.deleted_at.is_(None), or_(cls.expires_at.is_(None), cls.expires_at > func.now()))
