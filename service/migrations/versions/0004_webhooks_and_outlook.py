"""Webhooks, what estimates of jobs are made of, jobs that begin at an adapter, and permissions on models.

Revision ID: 0004
"""

from alembic import op

revision = "0004"
down_revision = "0003"

CHANGES = """
alter table jobs
  add column start_model text,
  add column start_adapter text,
  add column expected_tokens bigint not null default 0,
  add column leased_seconds double precision not null default 0,
  add column pace_since timestamptz,
  add column pace_step int not null default 0,
  add constraint fk_jobs_start_adapter foreign key (project_id, start_adapter) references adapters (project_id, id);
create index ix_jobs_start_adapter on jobs (project_id, start_adapter) where start_adapter is not null;
create index ix_jobs_succeeded on jobs (model, finished_at desc) where status = 'succeeded';

create table workers (
  name text not null,
  base_model text not null,
  base_fingerprint text not null,
  seen_at timestamptz not null default now(),
  primary key (base_model, base_fingerprint, name)
);

create table paces (
  base_model text not null,
  base_fingerprint text not null,
  jobs int not null,
  seconds_low double precision not null,
  seconds_median double precision not null,
  seconds_high double precision not null,
  tokens_per_byte double precision not null,
  primary key (base_model, base_fingerprint)
);

create table webhook_endpoints (
  id text primary key,
  project_id text not null references projects,
  name text not null,
  url text not null,
  event_types jsonb not null,
  secret_version int not null default 1,
  previous_until timestamptz,
  disabled_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  deleted_at timestamptz,
  unique (project_id, id)
);
create index ix_webhook_endpoints_project on webhook_endpoints (project_id, created_at desc, id desc)
  where deleted_at is null;

create table webhook_deliveries (
  id text primary key,
  project_id text not null references projects,
  endpoint_id text not null,
  event_id text not null,
  event_type text not null,
  body text not null,
  status text not null default 'pending' check (status in ('pending', 'delivered', 'failed')),
  attempts int not null default 0,
  next_attempt_at timestamptz not null default now(),
  lease_until timestamptz,
  last_attempt_at timestamptz,
  response_status int,
  error text,
  created_at timestamptz not null default now(),
  delivered_at timestamptz,
  unique (endpoint_id, event_id),
  foreign key (project_id, endpoint_id) references webhook_endpoints (project_id, id)
);
create index ix_webhook_deliveries_endpoint on webhook_deliveries (endpoint_id, created_at desc, id desc);
create index ix_webhook_deliveries_due on webhook_deliveries (next_attempt_at) where status = 'pending';
create index ix_webhook_deliveries_pending on webhook_deliveries (endpoint_id, next_attempt_at) where status = 'pending';
create index ix_webhook_deliveries_ended on webhook_deliveries (created_at) where status <> 'pending';

create table model_permissions (
  id text primary key,
  project_id text not null references projects,
  model_name text not null references models,
  created_at timestamptz not null default clock_timestamp(),
  unique (model_name, project_id)
);
create index ix_models_adapter on models (adapter_id);
create index ix_model_permissions_project on model_permissions (project_id);
"""

# Both look through the policies of the table that they ask: a tenant sees its own permissions, and models by these.
SHARED = {
    "models": "exists (select 1 from model_permissions p where p.model_name = models.name)",
    "adapters": "exists (select 1 from models m where m.adapter_id = adapters.id and m.deleted_at is null)",
}
TENANT_TABLES = ("webhook_endpoints", "webhook_deliveries", "model_permissions")
API_GRANTS = {
    "webhook_endpoints": "select, insert, update",
    "webhook_deliveries": "select, insert, update",
    "model_permissions": "select",
    "workers": "select",
    "paces": "select",
}
CONTROL_GRANTS = {
    "webhook_endpoints": "select, update",
    "webhook_deliveries": "select, insert, update, delete",
    "model_permissions": "select, insert, delete",
    "workers": "select, insert, update, delete",
    "paces": "select, insert, update",
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
    # What is shared with a project it can read: policies of one command are joined by "or".
    for table, shared in SHARED.items():
        op.execute(f"create policy shared on {table} for select to weft_api using ({shared})")
    for role, grants in (("weft_api", API_GRANTS), ("weft_control", CONTROL_GRANTS)):
        for table, rights in grants.items():
            op.execute(f"grant {rights} on {table} to {role}")


def downgrade() -> None:
    raise NotImplementedError("restore a backup: dropping these tables would drop what tenants have configured")
