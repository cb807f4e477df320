"""Adapters that made an engine compute values that are not numbers.

Revision ID: 0013
"""

from alembic import op

revision = "0013"
down_revision = "0012"

CHANGES = """
alter table adapters add column quarantined_at timestamptz;
create index ix_adapters_quarantined on adapters (quarantined_at) where quarantined_at is not null
"""


def upgrade() -> None:
    op.execute("set local lock_timeout = '5s'")
    for statement in CHANGES.split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("restore a backup: which adapters are in quarantine would be forgotten")
