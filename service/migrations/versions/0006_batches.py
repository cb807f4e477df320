"""Batches of requests, and the parts of their answers.

Revision ID: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"

CHANGES = """
create table batches (
  id text primary key,
  project_id text not null references projects,
  key_id text not null,
  input_file_id text not null,
  endpoint text not null,
  completion_window text not null,
  metadata jsonb,
  output_lifetime_seconds int,
  status text not null default 'validating' check (status in (
    'validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired', 'cancelling', 'cancelled')),
  errors jsonb,
  model text,
  total int not null default 0,
  completed int not null default 0,
  failed int not null default 0,
  prompt_tokens bigint not null default 0,
  completion_tokens bigint not null default 0,
  output_file_id text,
  error_file_id text,
  created_at timestamptz not null default now(),
  expires_at timestamptz not null,
  in_progress_at timestamptz,
  finalizing_at timestamptz,
  completed_at timestamptz,
  failed_at timestamptz,
  expired_at timestamptz,
  cancelling_at timestamptz,
  cancelled_at timestamptz,
  epoch int not null default 0,
  held_until timestamptz,
  purged_at timestamptz,
  unique (project_id, id),
  foreign key (project_id, input_file_id) references files (project_id, id),
  foreign key (project_id, output_file_id) references files (project_id, id),
  foreign key (project_id, error_file_id) references files (project_id, id)
);
create index ix_batches_project on batches (project_id, created_at desc, id desc);
create index ix_batches_unfinished on batches (held_until nulls first, created_at) where purged_at is null;
create index ix_batches_input on batches (project_id, input_file_id) where purged_at is null;

create table batch_parts (
  batch_id text not null,
  name text not null,
  project_id text not null references projects,
  lines int[] not null,
  completed int not null,
  failed int not null,
  created_at timestamptz not null default now(),
  primary key (batch_id, name),
  foreign key (project_id, batch_id) references batches (project_id, id)
);
"""

TENANT_TABLES = ("batches", "batch_parts")
API_GRANTS = {"batches": "select, insert, update"}
CONTROL_GRANTS = {"batches": "select, update", "batch_parts": "select, insert, delete"}


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
    raise NotImplementedError("restore a backup: dropping these tables would drop batches under way")
