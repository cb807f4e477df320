"""Rows of recorded answers, one per scope."""

from datetime import datetime
from typing import Final

from sqlalchemy import func
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base

IN_FLIGHT: Final = 0
"""The status of a request that somebody is at; `answer` says who, until the row expires."""
NOT_KEPT: Final = b""
"""The answer of a request that was answered and can be answered no more."""


class AnswerRow(Base):
    """The answer to a request, sealed. `project_id` is empty for the administrator."""

    __tablename__ = "recorded_answers"

    project_id: Mapped[str] = mapped_column(primary_key=True)
    scope: Mapped[bytes] = mapped_column(primary_key=True)
    body_hash: Mapped[bytes]
    status: Mapped[int]
    answer: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
