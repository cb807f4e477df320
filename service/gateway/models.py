"""Rows of what came of requests to registered versions."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base


class VersionCountRow(Base):
    """One bucket of one version. Copies of requests to it, `shadow`, are counted apart. `project_id` is its owner."""

    __tablename__ = "version_counts"

    registered_id: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    shadow: Mapped[bool] = mapped_column(primary_key=True)
    bucket: Mapped[datetime] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    requests: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[int] = mapped_column(BigInteger)
