"""Rows of organizations, projects (the tenants), their keys and accounts, and of the audit log.

A key is stored as its hash only.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, ForeignKeyConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base


class OrganizationRow(Base):
    __tablename__ = "organizations"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ProjectRow(Base):
    """A tenant. `virtual_time` is the training it has been served, in tokens divided by `weight`.

    `busy` says whether it had work when the scheduler last looked. A project that turns busy gets no credit for idling.
    Limits that are None are the settings' own.
    """

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    name: Mapped[str]
    status: Mapped[str] = mapped_column(default="active")
    weight: Mapped[float] = mapped_column(default=1.0)
    max_running_jobs: Mapped[int] = mapped_column(default=4)
    max_queued_jobs: Mapped[int | None]
    max_management_per_minute: Mapped[int | None]
    max_requests_per_minute: Mapped[int | None]
    max_tokens_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    max_streams: Mapped[int | None]
    max_storage_bytes: Mapped[int | None] = mapped_column(BigInteger)
    monthly_budget_cents: Mapped[int | None] = mapped_column(BigInteger)
    virtual_time: Mapped[float] = mapped_column(default=0.0)
    busy: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    archived_at: Mapped[datetime | None]


class ServiceAccountRow(Base):
    __tablename__ = "service_accounts"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    role: Mapped[str] = mapped_column(default="member")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]


class KeyRow(Base):
    """A key of a project. Without scopes it may do everything."""

    __tablename__ = "api_keys"
    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "service_account_id"],
            ["service_accounts.project_id", "service_accounts.id"],
            name="fk_api_keys_service_account",
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    public_id: Mapped[str]
    hash: Mapped[bytes]
    name: Mapped[str]
    redacted_value: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(JSONB, default=list)
    service_account_id: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class AdminKeyRow(Base):
    __tablename__ = "admin_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    public_id: Mapped[str]
    hash: Mapped[bytes]
    name: Mapped[str]
    redacted_value: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class AuditRow(Base):
    """`project_id` is None for what concerns no project. `subject` is the id of what was changed."""

    __tablename__ = "audit_logs"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    type: Mapped[str]
    actor: Mapped[dict[str, Any]] = mapped_column(JSONB)
    subject: Mapped[str]
    details: Mapped[dict[str, Any]] = mapped_column(JSONB)
    request_id: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
