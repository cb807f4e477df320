"""Rows of imports and exports: what was asked for, who works on it under which epoch, and what came of it."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base


class TransferRow(Base):
    """`kind` is 'import', 'peft' or 'merged', the latter two exports of `version`. A 'peft' one ends as it begins.

    `artifact_id` is what an import made or an export is of. `source` is where an import's files lie: file ids, or a
    bucket's keys with their sizes. `reserved` are artifacts that its workers got places for.
    """

    __tablename__ = "transfers"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    kind: Mapped[str]
    status: Mapped[str] = mapped_column(default="queued")
    base_model: Mapped[str]
    base_fingerprint: Mapped[str]
    adapter: Mapped[str]
    version: Mapped[int | None]
    artifact_id: Mapped[str | None]
    source: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    files: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB(none_as_null=True))
    changes: Mapped[list[str] | None] = mapped_column(JSONB(none_as_null=True))
    error: Mapped[dict[str, str] | None] = mapped_column(JSONB(none_as_null=True))
    key_id: Mapped[str]
    reserved: Mapped[list[str]] = mapped_column(JSONB, default=list)
    epoch: Mapped[int] = mapped_column(BigInteger, default=0)
    lease_owner: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    lost_workers: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[datetime] = mapped_column(server_default=func.now())
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    finished_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    purged_at: Mapped[datetime | None]
