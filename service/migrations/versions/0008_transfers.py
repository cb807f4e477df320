"""Imports of adapters from elsewhere and exports of our own, as leased work.

Revision ID: 0008
"""

from alembic import op

revision = "0008"
down_revision = "0007"

CHANGES = """
create table transfers (
  id text primary key,
  project_id text not null references projects,
  kind text not null check (kind in ('import', 'peft', 'merged')),
  status text not null default 'queued' check (status in ('queued', 'running', 'succeeded', 'failed')),
  base_model text not null,
  base_fingerprint text not null,
  adapter text not null,
  version int,
  artifact_id text,
  source jsonb,
  files jsonb,
  changes jsonb,
  error jsonb,
  key_id text not null,
  reserved jsonb not null default '[]',
  epoch bigint not null default 0,
  lease_owner text,
  lease_until timestamptz,
  lost_workers int not null default 0,
  not_before timestamptz not null default now(),
  created_at timestamptz not null default clock_timestamp(),
  finished_at timestamptz,
  expires_at timestamptz,
  purged_at timestamptz,
  unique (project_id, id)
);
create index ix_transfers_project on transfers (project_id, kind, created_at desc, id desc);
create index ix_transfers_queue on transfers (base_model, base_fingerprint, created_at) where status = 'queued';
create index ix_transfers_leased on transfers (lease_until) where status = 'running';
create index ix_transfers_unpurged on transfers (finished_at) where purged_at is null and finished_at is not null;
"""

API_GRANTS = {"transfers": "select, insert"}
CONTROL_GRANTS = {"transfers": "select, update"}


def upgrade() -> None:
    op.execute("set local lock_timeout = '5s'")
    for statement in CHANGES.split(";\n"):
        if statement.strip():
            op.execute(statement)
    op.execute("alter table transfers enable row level security")
    op.execute("alter table transfers force row level security")
    own = "project_id = current_setting('app.project')"
    op.execute(f"create policy tenant on transfers to weft_api using ({own}) with check ({own})")
    op.execute("create policy control on transfers to weft_control using (true) with check (true)")
    for role, grants in (("weft_api", API_GRANTS), ("weft_control", CONTROL_GRANTS)):
        for table, rights in grants.items():
            op.execute(f"grant {rights} on {table} to {role}")


def downgrade() -> None:
    raise NotImplementedError("restore a backup: dropping this table would drop imports and exports under way")
