"""The first schema: tenants, files, jobs as the queue, adapters, replicas, the usage ledger; row-level security forced.

Revision ID: 0001
"""

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
create table organizations (
  id text primary key,
  name text not null unique,
  created_at timestamptz not null default now()
);

create table projects (
  id text primary key,
  organization_id text not null references organizations,
  name text not null,
  status text not null default 'active' check (status in ('active', 'archived')),
  weight double precision not null default 1 check (weight > 0),
  max_running_jobs int not null default 4 check (max_running_jobs >= 0),
  virtual_time double precision not null default 0,
  busy boolean not null default false,
  created_at timestamptz not null default now(),
  archived_at timestamptz,
  unique (organization_id, name)
);

create table api_keys (
  id text primary key,
  project_id text not null references projects,
  public_id text not null unique,
  hash bytea not null,
  name text not null,
  redacted_value text not null,
  created_at timestamptz not null default now(),
  last_used_at timestamptz,
  revoked_at timestamptz
);
create index ix_api_keys_project on api_keys (project_id, created_at desc, id desc);

create table files (
  id text primary key,
  project_id text not null references projects,
  filename text not null,
  purpose text not null,
  bytes bigint not null,
  sha256 text not null,
  status text not null check (status in ('uploaded', 'processed', 'error')),
  status_details text,
  examples int not null default 0,
  created_at timestamptz not null default now(),
  expires_at timestamptz,
  deleted_at timestamptz,
  purged_at timestamptz,
  unique (project_id, id)
);
create index ix_files_project on files (project_id, created_at desc, id desc) where deleted_at is null;
create index ix_files_over on files (least(deleted_at, expires_at)) where purged_at is null;

create table jobs (
  id text primary key,
  project_id text not null references projects,
  status text not null,
  phase text not null default 'waiting',
  want text not null default 'run' check (want in ('run', 'cancel', 'pause')),
  model text not null,
  suffix text,
  metadata jsonb not null default '{}',
  integrations jsonb,
  spec jsonb not null,
  training_file text not null,
  validation_file text,
  priority int not null default 0,
  not_before timestamptz not null default now(),
  epoch bigint not null default 0,
  lost_workers int not null default 0,
  lease_owner text,
  lease_until timestamptz,
  leased_at timestamptz,
  step int not null default 0,
  total_steps int not null default 0,
  trained_tokens bigint not null default 0,
  metered_tokens bigint not null default 0,
  checkpoint jsonb,
  error jsonb,
  fine_tuned_model text,
  event_seq bigint not null default 0,
  created_at timestamptz not null default now(),
  started_at timestamptz,
  finished_at timestamptz,
  unique (project_id, id),
  foreign key (project_id, training_file) references files (project_id, id),
  foreign key (project_id, validation_file) references files (project_id, id)
);
create index ix_jobs_project on jobs (project_id, created_at desc, id desc);
create index ix_jobs_queue on jobs (project_id, priority desc, created_at, id) where status = 'queued';
create index ix_jobs_running on jobs (project_id) where status = 'running';
create index ix_jobs_leased on jobs (lease_until) where status = 'running';

create table job_events (
  project_id text not null,
  job_id text not null,
  seq bigint not null,
  id text not null,
  epoch bigint not null,
  level text not null,
  type text not null,
  message text not null,
  data jsonb not null default '{}',
  created_at timestamptz not null default clock_timestamp(),
  primary key (job_id, seq),
  unique (job_id, id),
  foreign key (project_id, job_id) references jobs (project_id, id)
);

create table adapters (
  id text primary key check (id ~ '^[0-9a-f]{64}$'),
  project_id text not null references projects,
  job_id text not null,
  epoch bigint not null,
  step int not null,
  manifest jsonb not null,
  created_at timestamptz not null default now(),
  deleted_at timestamptz,
  unique (project_id, id),
  foreign key (project_id, job_id) references jobs (project_id, id)
);

create table models (
  name text primary key,
  project_id text not null references projects,
  adapter_id text not null,
  job_id text not null,
  kind text not null check (kind in ('final', 'checkpoint')),
  created_at timestamptz not null default now(),
  deleted_at timestamptz,
  unique (project_id, name),
  foreign key (project_id, adapter_id) references adapters (project_id, id),
  foreign key (project_id, job_id) references jobs (project_id, id)
);
create unique index uq_models_final on models (job_id) where kind = 'final';
create index ix_models_project on models (project_id, created_at desc, name) where deleted_at is null;

create table usage (
  id text primary key,
  project_id text not null references projects,
  kind text not null check (kind in ('completion', 'training')),
  key_id text,
  model text not null,
  prompt_tokens bigint not null default 0,
  completion_tokens bigint not null default 0,
  trained_tokens bigint not null default 0,
  created_at timestamptz not null default now()
);
create index ix_usage_project on usage (project_id, created_at);

create table replicas (
  id text primary key,
  url text not null,
  api_key text not null,
  base_model text not null,
  base_fingerprint text not null,
  state text not null,
  max_loras int not null,
  max_lora_rank int not null,
  context_length int not null,
  adapters jsonb not null default '[]',
  seen_at timestamptz not null default now()
);
"""

TENANT_TABLES = ("api_keys", "files", "jobs", "job_events", "adapters", "models", "usage")

# What each role may do, per table. The API role is held to one project by the policies below; `projects` itself is
# readable by its own project only.
API_GRANTS = {
    "organizations": "select",
    "projects": "select",
    "files": "select, insert, update",
    "jobs": "select, insert, update",
    "job_events": "select, insert",
    "adapters": "select, update",
    "models": "select, update",
    "usage": "select",
}
CONTROL_GRANTS = {
    "organizations": "select, insert",
    "projects": "select, insert, update",
    "api_keys": "select, insert, update",
    "files": "select, update",
    "jobs": "select, update",
    "job_events": "select, insert, update",
    "adapters": "select, insert, update",
    "models": "select, insert, update",
    "usage": "select, insert",
    "replicas": "select, insert, update, delete",
}


def upgrade() -> None:
    op.execute("set local lock_timeout = '5s'")
    for statement in TABLES.split(";\n"):
        if statement.strip():
            op.execute(statement)
    for table in TENANT_TABLES:
        op.execute(f"alter table {table} enable row level security")
        op.execute(f"alter table {table} force row level security")
        # Strict on purpose: without a project set, current_setting raises or gives '', which no row has.
        own = "project_id = current_setting('app.project')"
        op.execute(f"create policy tenant on {table} to weft_api using ({own}) with check ({own})")
        op.execute(f"create policy control on {table} to weft_control using (true) with check (true)")
    op.execute("alter table projects enable row level security")
    op.execute("alter table projects force row level security")
    op.execute("create policy tenant on projects to weft_api using (id = current_setting('app.project'))")
    op.execute("create policy control on projects to weft_control using (true) with check (true)")
    for role, grants in (("weft_api", API_GRANTS), ("weft_control", CONTROL_GRANTS)):
        for table, rights in grants.items():
            op.execute(f"grant {rights} on {table} to {role}")
    op.execute("grant select on alembic_version to weft_api, weft_control")


def downgrade() -> None:
    raise NotImplementedError("restore a backup: dropping the first schema would drop every tenant's data")
