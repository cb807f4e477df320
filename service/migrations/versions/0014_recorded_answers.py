"""Recorded answers that live as long as they say themselves: a claim for seconds, a chat for minutes.

Revision ID: 0014
"""

from alembic import op

revision = "0014"
down_revision = "0013"

CHANGES = """
alter table recorded_answers add column expires_at timestamptz;
update recorded_answers set expires_at = created_at + interval '24 hours';
alter table recorded_answers alter column expires_at set not null;
drop index ix_recorded_answers_created;
create index ix_recorded_answers_expires on recorded_answers (expires_at);
"""


def upgrade() -> None:
    op.execute("set local lock_timeout = '5s'")
    for statement in CHANGES.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("restore a backup: without its end a claim would be taken for an answer")
