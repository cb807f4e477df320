"""The usage ledger: append-only rows, unique by id, so that replaying a spool books nothing twice."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base


class UsageRow(Base):
    """`id` is the request id of a completion, or `<job>:<epoch>` for training.

    `base_model` is given where `model` does not say it. `shadow`: nobody's request, but a copy of one.
    """

    __tablename__ = "usage"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    kind: Mapped[str]
    key_id: Mapped[str | None]
    model: Mapped[str]
    base_model: Mapped[str | None]
    shadow: Mapped[bool] = mapped_column(default=False)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    completion_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    trained_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


PRICED = func.coalesce(UsageRow.base_model, UsageRow.model)
"""What `prices.base_of` knows the base of."""
