"""Rows of evaluations of versions, of the scores they consist of while under way, and of what came of requests."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, ForeignKeyConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base


class EvaluationRow(Base):
    """Where there is an `alias`, its outcome decides whether the version takes that over; `revision` and
    `current_version` are the alias's when the evaluation began to compare, 0 and null where there was none. `rounds`
    counts how often it has begun.

    `job_id` is of the job whose success asked for it, `key_id` of the key that did. Whoever works on it holds it until
    `held_until` under its `epoch`. `promoted` and `reason` are null where nothing was to be decided.
    """

    __tablename__ = "evaluations"
    __table_args__ = (
        ForeignKeyConstraint(
            ["project_id", "registered_id"], ["registered_adapters.project_id", "registered_adapters.id"]
        ),
        ForeignKeyConstraint(
            ["registered_id", "version"], ["adapter_versions.registered_id", "adapter_versions.number"]
        ),
        ForeignKeyConstraint(["project_id", "job_id"], ["jobs.project_id", "jobs.id"]),
        ForeignKeyConstraint(["project_id", "file_id"], ["files.project_id", "files.id"]),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    registered_id: Mapped[str]
    version: Mapped[int]
    job_id: Mapped[str | None]
    key_id: Mapped[str | None]
    file_id: Mapped[str]
    grader: Mapped[dict[str, Any]] = mapped_column(JSONB)
    alias: Mapped[str | None]
    min_score: Mapped[float | None]
    must_beat_current: Mapped[bool] = mapped_column(default=True)
    status: Mapped[str] = mapped_column(default="queued")
    revision: Mapped[int | None]
    current_version: Mapped[int | None]
    score: Mapped[float | None]
    current_score: Mapped[float | None]
    results: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    promoted: Mapped[bool | None]
    reason: Mapped[str | None]
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    rounds: Mapped[int] = mapped_column(default=0)
    epoch: Mapped[int] = mapped_column(default=0)
    held_until: Mapped[datetime | None]


class ScoreRow(Base):
    """What a version scored on one line of the file; `weight` is how much that counts in the mean."""

    __tablename__ = "evaluation_scores"
    __table_args__ = (
        ForeignKeyConstraint(["project_id", "evaluation_id"], ["evaluations.project_id", "evaluations.id"]),
    )

    evaluation_id: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    score: Mapped[float]
    weight: Mapped[float]
    problem: Mapped[str | None]


class AliasCountRow(Base):
    """One bucket of the requests that one revision of an alias sent to one version. `project_id` is the owner's.

    Copies of requests, `shadow`, are counted apart. `first_token_ms` is the sum over `streams`, `answer_ms` over
    `answers` that came whole; requests whose time says nothing are in neither.
    """

    __tablename__ = "alias_counts"

    registered_id: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    shadow: Mapped[bool] = mapped_column(primary_key=True)
    bucket: Mapped[datetime] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    requests: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[int] = mapped_column(BigInteger)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    streams: Mapped[int] = mapped_column(BigInteger)
    first_token_ms: Mapped[float]
    answers: Mapped[int] = mapped_column(BigInteger)
    answer_ms: Mapped[float]
