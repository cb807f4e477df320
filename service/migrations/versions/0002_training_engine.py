"""Checkpoint models, results files, and what kind of examples a file holds.

Revision ID: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"

# `model_name` is the name of the job's final model and the beginning of those of its checkpoint models; it is taken by
# whichever comes first. A file of before has no format: it holds chat or completion examples, there was nothing else.
CHANGES = """
alter table files add column example_format text check (example_format in ('chat', 'completion', 'preference'));

alter table jobs
  add column result_files jsonb not null default '[]',
  add column model_name text;
create unique index uq_jobs_model_name on jobs (model_name);

alter table models
  add column checkpoint_id text,
  add column step int,
  add column metrics jsonb,
  add constraint ck_models_checkpoint check (
    kind <> 'checkpoint' or (checkpoint_id is not null and step is not null and metrics is not null));
create unique index uq_models_checkpoint_id on models (checkpoint_id);
create unique index uq_models_checkpoint on models (job_id, step) where kind = 'checkpoint';
"""


def upgrade() -> None:
    op.execute("set local lock_timeout = '5s'")
    for statement in CHANGES.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("restore a backup: dropping these columns would drop what jobs have produced")
