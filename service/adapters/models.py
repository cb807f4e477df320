"""Rows of adapters (immutable, named by content hash) and of the public model names that point at them."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, ForeignKeyConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base


class AdapterRow(Base):
    __tablename__ = "adapters"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str]
    epoch: Mapped[int] = mapped_column(BigInteger)
    step: Mapped[int]
    manifest: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]

    __table_args__ = (ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"]),)


class ModelRow(Base):
    """A servable name. A job has at most one of kind 'final' and one of kind 'checkpoint' for each step.

    The database enforces it. `checkpoint_id`, `step` and `metrics` are of checkpoint models alone.
    """

    __tablename__ = "models"

    name: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    adapter_id: Mapped[str]
    job_id: Mapped[str]
    kind: Mapped[str]
    checkpoint_id: Mapped[str | None]
    step: Mapped[int | None]
    metrics: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "adapter_id"], ["adapters.project_id", "adapters.id"]),
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"]),
    )


class PermissionRow(Base):
    """A project that may use a model of another one. `project_id` is the one that may."""

    __tablename__ = "model_permissions"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    model_name: Mapped[str] = mapped_column(ForeignKey("models.name"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
