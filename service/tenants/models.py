"""Rows of organizations, projects (the tenants) and their keys. A key is stored as its hash only."""

from datetime import datetime

from sqlalchemy import ForeignKey, func
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
    """

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    name: Mapped[str]
    status: Mapped[str] = mapped_column(default="active")
    weight: Mapped[float] = mapped_column(default=1.0)
    max_running_jobs: Mapped[int] = mapped_column(default=4)
    virtual_time: Mapped[float] = mapped_column(default=0.0)
    busy: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    archived_at: Mapped[datetime | None]


class KeyRow(Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    public_id: Mapped[str]
    hash: Mapped[bytes]
    name: Mapped[str]
    redacted_value: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
