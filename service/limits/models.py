"""Rows of what projects have used of their rates, as all processes together know it."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base


class RateRow(Base):
    """The moments, in seconds of the database's clock, at which a project's buckets are full again."""

    __tablename__ = "rate_states"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    requests_until: Mapped[float]
    tokens_until: Mapped[float]
