"""Recorded answers for retried requests; scopes, expiry and owners of keys; limits of projects; the audit log.

Revision ID: 0003
"""

from alembic import op

revision = "0003"
down_revision = "0002"

# Null limits mean the settings' own. `recorded_answers.project_id` is '' for the administrator, so it refers to nothing.
CHANGES = """
create table recorded_answers (
  project_id text not null,
  scope bytea not null,
  body_hash bytea not null,
  status int not null,
  answer bytea not null,
  created_at timestamptz not null default now(),
  primary key (project_id, scope)
);
create index ix_recorded_answers_created on recorded_answers (created_at);

create table service_accounts (
  id text primary key,
  project_id text not null references projects,
  name text not null,
  role text not null default 'member' check (role in ('member', 'none')),
  created_at timestamptz not null default now(),
  deleted_at timestamptz,
  unique (project_id, id)
);
create index ix_service_accounts_project on service_accounts (project_id, created_at desc, id desc);

alter table api_keys
  add column scopes jsonb not null default '[]',
  add column expires_at timestamptz,
  add column service_account_id text,
  add constraint fk_api_keys_service_account foreign key (project_id, service_account_id)
    references service_accounts (project_id, id);

create table admin_keys (
  id text primary key,
  public_id text not null unique,
  hash bytea not null,
  name text not null,
  redacted_value text not null,
  created_at timestamptz not null default now(),
  last_used_at timestamptz,
  expires_at timestamptz,
  revoked_at timestamptz
);

alter table projects
  add column max_requests_per_minute int check (max_requests_per_minute >= 0),
  add column max_tokens_per_minute bigint check (max_tokens_per_minute >= 0),
  add column max_streams int check (max_streams >= 0),
  add column max_storage_bytes bigint check (max_storage_bytes >= 0),
  add column monthly_budget_cents bigint check (monthly_budget_cents >= 0);

create table rate_states (
  project_id text primary key references projects,
  requests_until double precision not null,
  tokens_until double precision not null
);

create table audit_logs (
  id text primary key,
  project_id text references projects,
  type text not null,
  actor jsonb not null,
  subject text not null,
  details jsonb not null default '{}',
  request_id text,
  created_at timestamptz not null default clock_timestamp()
);
create index ix_audit_logs_created on audit_logs (created_at desc, id desc);
create index ix_audit_logs_project on audit_logs (project_id, created_at desc, id desc);

create index ix_usage_created on usage (created_at);
"""

TENANT_TABLES = ("recorded_answers", "service_accounts", "rate_states", "audit_logs")
API_GRANTS = {
    "recorded_answers": "select, insert, update",
    "audit_logs": "insert",
}
CONTROL_GRANTS = {
    "recorded_answers": "select, insert, update, delete",
    "service_accounts": "select, insert, update",
    "admin_keys": "select, insert, update",
    "rate_states": "select, insert, update",
    # Written once: no role of the service can change or remove an entry.
    "audit_logs": "select, insert",
}


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
    raise NotImplementedError("restore a backup: dropping these tables would drop the audit log")
