"""Reports on files whose tokens a base model's tokenizer has counted.

Revision ID: 0016
"""

from alembic import op

revision = "0016"
down_revision = "0015"

CHANGES = """
alter table file_reports add column tokenizer text not null default '';
alter table file_reports drop constraint file_reports_pkey;
alter table file_reports add primary key (project_id, sha256, purpose, compared_sha256, tokenizer, rules);
"""


def upgrade() -> None:
    op.execute("set local lock_timeout = '5s'")
    for statement in CHANGES.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("restore a backup: one content may have two reports, and a release before takes one")
