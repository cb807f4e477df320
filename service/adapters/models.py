"""Rows of adapters (immutable, named by content hash) and of the public model names that point at them."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, ForeignKeyConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base


class AdapterRow(Base):
    """An artifact. `job_id` is null where no job of this service made it: its manifest then names its import.

    `quarantined_at`: when a replica last found that it makes the engine compute values that are not numbers.
    """

    __tablename__ = "adapters"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str | None]
    epoch: Mapped[int] = mapped_column(BigInteger)
    step: Mapped[int]
    manifest: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]
    quarantined_at: Mapped[datetime | None]

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


class RegisteredRow(Base):
    """A name of its owner's choosing with versions behind it. `base_model` is that of its versions, null before one.

    A deleted one keeps its name until it is purged.
    """

    __tablename__ = "registered_adapters"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    description: Mapped[str | None]
    # `metadata` is taken on declarative classes.
    adapter_metadata: Mapped[dict[str, str]] = mapped_column("metadata", JSONB, default=dict)
    base_model: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    deleted_at: Mapped[datetime | None]
    purged_at: Mapped[datetime | None]


class VersionRow(Base):
    """One artifact as version `number` of a registered adapter. Deleted ones keep their numbers.

    `source` is what it was made from: {type, id}. `warm_requested_at`: when its owner last asked to have it loaded.
    """

    __tablename__ = "adapter_versions"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    registered_id: Mapped[str]
    number: Mapped[int]
    artifact_id: Mapped[str]
    job_id: Mapped[str | None]
    step: Mapped[int | None]
    source: Mapped[dict[str, str]] = mapped_column(JSONB)
    provenance: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)
    evaluation: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    pinned: Mapped[bool] = mapped_column(default=False)
    warm_requested_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    deleted_at: Mapped[datetime | None]

    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "registered_id"], ["registered_adapters.project_id", "registered_adapters.id"]
        ),
        ForeignKeyConstraint(["project_id", "artifact_id"], ["adapters.project_id", "adapters.id"]),
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"]),
    )


class AliasRow(Base):
    """What `name@alias` means. `revision` grows with each change, also over a deletion.

    `traffic`: [{version, weight}] or null for all of it to `version`; `shadow`: {version, fraction} or null;
    `automatic_rollback`: {max_error_rate, min_requests, window_seconds} or null.
    """

    __tablename__ = "adapter_aliases"

    registered_id: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    version: Mapped[int]
    traffic: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB(none_as_null=True))
    shadow: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    automatic_rollback: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    revision: Mapped[int]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())

    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "registered_id"], ["registered_adapters.project_id", "registered_adapters.id"]
        ),
        ForeignKeyConstraint(
            ["registered_id", "version"], ["adapter_versions.registered_id", "adapter_versions.number"]
        ),
    )


class AliasChangeRow(Base):
    """One change of an alias, never changed itself. `detail` holds the traffic and shadow that it led to."""

    __tablename__ = "alias_changes"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    registered_id: Mapped[str]
    alias: Mapped[str]
    revision: Mapped[int]
    action: Mapped[str]
    from_version: Mapped[int | None]
    to_version: Mapped[int | None]
    detail: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)
    actor: Mapped[str]
    reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())

    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "registered_id"], ["registered_adapters.project_id", "registered_adapters.id"]
        ),
    )


class GrantRow(Base):
    """A project that may use a registered adapter of another one. `project_id` is the one that may."""

    __tablename__ = "adapter_grants"

    id: Mapped[str] = mapped_column(primary_key=True)
    registered_id: Mapped[str] = mapped_column(ForeignKey("registered_adapters.id"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
