"""Jobs that wait for their files, and limits on what a project may queue and how often it may ask.

Revision ID: 0015
"""

from alembic import op

revision = "0015"
down_revision = "0014"

CHANGES = """
alter table jobs add column draft jsonb;
alter table jobs alter column spec drop not null;
alter table jobs add constraint jobs_planned check ((spec is null) <> (draft is null));
create index ix_jobs_waiting on jobs (created_at) where status = 'validating_files';
create index ix_jobs_unfinished on jobs (project_id) where status not in ('succeeded', 'failed', 'cancelled');

alter table projects
  add column max_queued_jobs int check (max_queued_jobs >= 0),
  add column max_management_per_minute int check (max_management_per_minute >= 0);
"""


def upgrade() -> None:
    op.execute("set local lock_timeout = '5s'")
    for statement in CHANGES.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("restore a backup: dropping these columns would drop jobs whose files are not ready")
