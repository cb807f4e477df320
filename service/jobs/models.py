"""Rows of training jobs and their events, and of what is known of workers and their pace.

The jobs table is the queue: claims, fencing and resuming are columns.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, ForeignKeyConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base


class JobRow(Base):
    """`epoch` counts claims; each write of a worker must carry the current one. `checkpoint`: a CheckpointManifest.

    `model_name` is reserved as soon as the job has a model of any kind, `fine_tuned_model` set when it has succeeded.
    `model` is the base; `start_model` is the fine-tuned model that the job goes on from, `start_adapter` what it was.
    `draft` is what a job is to be that has no `spec` yet, since it waits for its files or ended before it had them.
    `adapter` is the registered adapter whose next version the finished job becomes; `on_success` is an OnSuccess.
    `finished_at` of a running job is when its owner cancelled it.
    `pace_since` and `pace_step` are of the first report of training under the lease; `leased_seconds` add up leases.
    """

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    status: Mapped[str]
    phase: Mapped[str] = mapped_column(default="waiting")
    want: Mapped[str] = mapped_column(default="run")
    model: Mapped[str]
    start_model: Mapped[str | None]
    start_adapter: Mapped[str | None]
    suffix: Mapped[str | None]
    adapter: Mapped[str | None]
    on_success: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    # `metadata` is taken on declarative classes.
    job_metadata: Mapped[dict[str, str]] = mapped_column("metadata", JSONB, default=dict)
    integrations: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)
    spec: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    draft: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    training_file: Mapped[str]
    validation_file: Mapped[str | None]
    priority: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[datetime] = mapped_column(server_default=func.now())
    epoch: Mapped[int] = mapped_column(BigInteger, default=0)
    lost_workers: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    leased_at: Mapped[datetime | None]
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int] = mapped_column(default=0)
    trained_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    metered_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    expected_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    leased_seconds: Mapped[float] = mapped_column(default=0.0)
    pace_since: Mapped[datetime | None]
    pace_step: Mapped[int] = mapped_column(default=0)
    checkpoint: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    fine_tuned_model: Mapped[str | None]
    model_name: Mapped[str | None]
    result_files: Mapped[list[str]] = mapped_column(JSONB, default=list)
    event_seq: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        ForeignKeyConstraint(["project_id", "training_file"], ["files.project_id", "files.id"]),
        ForeignKeyConstraint(["project_id", "validation_file"], ["files.project_id", "files.id"]),
        # Adapters refer to jobs, too.
        ForeignKeyConstraint(
            ["project_id", "start_adapter"],
            ["adapters.project_id", "adapters.id"],
            name="fk_jobs_start_adapter",
            use_alter=True,
        ),
    )


class EventRow(Base):
    """One event. `seq` is taken under the job's row lock, so readers that page by it never miss one."""

    __tablename__ = "job_events"

    project_id: Mapped[str]
    job_id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    id: Mapped[str]
    epoch: Mapped[int] = mapped_column(BigInteger)
    level: Mapped[str]
    type: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())

    __table_args__ = (ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"]),)


class WorkerRow(Base):
    """A worker that asked for jobs or held one lately. Of no tenant."""

    __tablename__ = "workers"

    base_model: Mapped[str] = mapped_column(primary_key=True)
    base_fingerprint: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PaceRow(Base):
    """What the last jobs of a base needed: seconds for each trained token, trained tokens for each byte and epoch."""

    __tablename__ = "paces"

    base_model: Mapped[str] = mapped_column(primary_key=True)
    base_fingerprint: Mapped[str] = mapped_column(primary_key=True)
    jobs: Mapped[int]
    seconds_low: Mapped[float]
    seconds_median: Mapped[float]
    seconds_high: Mapped[float]
    tokens_per_byte: Mapped[float]
