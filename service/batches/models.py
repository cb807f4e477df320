"""Rows of batches and of the parts of their answers. The answers themselves lie in the store, never in a row."""

from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, BigInteger, ForeignKey, ForeignKeyConstraint, Integer, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base


class BatchRow(Base):
    """Whoever works on it holds it until `held_until` under its `epoch`; `purged_at` says that nothing is left to do.

    A batch that is given back has its `held_until` in the past, which is also the order in which batches are taken.
    """

    __tablename__ = "batches"
    __table_args__ = tuple(
        ForeignKeyConstraint(["project_id", name], ["files.project_id", "files.id"])
        for name in ("input_file_id", "output_file_id", "error_file_id")
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    key_id: Mapped[str]
    input_file_id: Mapped[str]
    endpoint: Mapped[str]
    completion_window: Mapped[str]
    batch_metadata: Mapped[dict[str, str] | None] = mapped_column("metadata", JSONB(none_as_null=True))
    output_lifetime_seconds: Mapped[int | None]
    status: Mapped[str] = mapped_column(default="validating")
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB(none_as_null=True))
    model: Mapped[str | None]
    total: Mapped[int] = mapped_column(default=0)
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    completion_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    output_file_id: Mapped[str | None]
    error_file_id: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    in_progress_at: Mapped[datetime | None]
    finalizing_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    expired_at: Mapped[datetime | None]
    cancelling_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]
    epoch: Mapped[int] = mapped_column(default=0)
    held_until: Mapped[datetime | None]
    purged_at: Mapped[datetime | None]


class BatchPartRow(Base):
    """Answers to `lines` of the input, stored as up to two objects under `name`. A line is in one part at most."""

    __tablename__ = "batch_parts"
    __table_args__ = (ForeignKeyConstraint(["project_id", "batch_id"], ["batches.project_id", "batches.id"]),)

    batch_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    lines: Mapped[list[int]] = mapped_column(ARRAY(Integer))
    completed: Mapped[int]
    failed: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
