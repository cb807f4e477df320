"""Rows of inference replicas as they last announced themselves."""

from datetime import datetime

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from service.db import Base


class ReplicaRow(Base):
    __tablename__ = "replicas"

    id: Mapped[str] = mapped_column(primary_key=True)
    url: Mapped[str]
    api_key: Mapped[str]
    base_model: Mapped[str]
    base_fingerprint: Mapped[str]
    state: Mapped[str]
    max_loras: Mapped[int]
    max_lora_rank: Mapped[int]
    context_length: Mapped[int]
    adapters: Mapped[list[str]] = mapped_column(JSONB, default=list)
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
