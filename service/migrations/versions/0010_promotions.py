"""Evaluations of versions, promotion by their scores, and rollback by the error rate.

Revision ID: 0010
"""

from alembic import op

revision = "0010"
down_revision = "0009"

CHANGES = """
alter table jobs add column on_success jsonb;
alter table adapter_aliases add column automatic_rollback jsonb;
create index ix_adapter_aliases_guarded on adapter_aliases (registered_id) where automatic_rollback is not null;
alter table alias_changes drop constraint alias_changes_action_check;
alter table alias_changes add constraint alias_changes_action_check
  check (action in ('promote', 'rollback', 'traffic', 'shadow', 'delete', 'automatic_rollback', 'update'));
create index ix_jobs_held_out on jobs ((on_success #>> '{evaluation,file_id}')) where on_success is not null;

create table evaluations (
  id text primary key,
  project_id text not null references projects,
  registered_id text not null,
  version int not null,
  job_id text,
  key_id text,
  file_id text not null,
  grader jsonb not null,
  alias text,
  min_score double precision,
  must_beat_current boolean not null default true,
  status text not null default 'queued' check (status in ('queued', 'running', 'succeeded', 'failed')),
  revision int,
  current_version int,
  score double precision,
  current_score double precision,
  results jsonb,
  promoted boolean,
  reason text,
  error jsonb,
  created_at timestamptz not null default clock_timestamp(),
  started_at timestamptz,
  finished_at timestamptz,
  epoch int not null default 0,
  held_until timestamptz,
  unique (project_id, id),
  foreign key (project_id, registered_id) references registered_adapters (project_id, id),
  foreign key (registered_id, version) references adapter_versions (registered_id, number),
  foreign key (project_id, job_id) references jobs (project_id, id),
  foreign key (project_id, file_id) references files (project_id, id)
);
create unique index uq_evaluations_job on evaluations (job_id) where job_id is not null;
create index ix_evaluations_registered on evaluations (registered_id, created_at desc, id desc);
create index ix_evaluations_waiting on evaluations (held_until nulls first, created_at) where finished_at is null;
create index ix_evaluations_file on evaluations (file_id) where finished_at is null;

create table evaluation_scores (
  evaluation_id text not null,
  version int not null,
  line int not null,
  project_id text not null references projects,
  score double precision not null,
  weight double precision not null,
  problem text,
  primary key (evaluation_id, version, line),
  foreign key (project_id, evaluation_id) references evaluations (project_id, id)
);
"""

TENANT_TABLES = ("evaluations", "evaluation_scores")
API_GRANTS = {"evaluations": "select, insert"}
CONTROL_GRANTS = {"evaluations": "select, insert, update", "evaluation_scores": "select, insert, delete"}


def upgrade() -> None:
    op.execute("set local lock_timeout = '5s'")
    for statement in CHANGES.split(";\n"):
        if statement.strip():
            op.execute(statement)
    for table in TENANT_TABLES:
        op.execute(f"alter table {table} enable row level security")
        op.execute(f"alter table {table} force row level security")
        own = "project_id = current_setting('app.project')"
        op.execute(f"create policy tenant on {table} to weft_api using ({own}) with check ({own})")
        op.execute(f"create policy control on {table} to weft_control using (true) with check (true)")
    for role, grants in (("weft_api", API_GRANTS), ("weft_control", CONTROL_GRANTS)):
        for table, rights in grants.items():
            op.execute(f"grant {rights} on {table} to {role}")


def downgrade() -> None:
    raise NotImplementedError("restore a backup: dropping these tables would drop what tenants have had measured")
