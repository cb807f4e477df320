"""The adapter registry: registered adapters, their versions and aliases, and who else may use them.

Revision ID: 0007
"""

from alembic import op

revision = "0007"
down_revision = "0006"

CHANGES = """
alter table adapters alter column job_id drop not null;
alter table jobs add column adapter text;

create table registered_adapters (
  id text primary key,
  project_id text not null references projects,
  name text not null,
  description text,
  metadata jsonb not null default '{}',
  base_model text,
  created_at timestamptz not null default clock_timestamp(),
  deleted_at timestamptz,
  purged_at timestamptz,
  unique (project_id, id)
);
create unique index uq_registered_adapters_name on registered_adapters (project_id, name) where purged_at is null;
create index ix_registered_adapters_project on registered_adapters (project_id, created_at desc, id desc)
  where deleted_at is null;
create index ix_registered_adapters_deleted on registered_adapters (deleted_at) where purged_at is null;

create table adapter_versions (
  id text primary key,
  project_id text not null references projects,
  registered_id text not null,
  number int not null check (number > 0),
  artifact_id text not null,
  job_id text,
  step int,
  source jsonb not null,
  provenance jsonb not null default '{}',
  evaluation jsonb,
  pinned boolean not null default false,
  warm_requested_at timestamptz,
  created_at timestamptz not null default clock_timestamp(),
  deleted_at timestamptz,
  unique (registered_id, number),
  unique (project_id, id),
  foreign key (project_id, registered_id) references registered_adapters (project_id, id),
  foreign key (project_id, artifact_id) references adapters (project_id, id),
  foreign key (project_id, job_id) references jobs (project_id, id)
);
create index ix_adapter_versions_artifact on adapter_versions (artifact_id);
create index ix_adapter_versions_warm on adapter_versions (warm_requested_at) where warm_requested_at is not null;
create index ix_adapter_versions_pinned on adapter_versions (artifact_id) where pinned and deleted_at is null;

create table adapter_aliases (
  registered_id text not null,
  alias text not null,
  project_id text not null references projects,
  version int not null,
  traffic jsonb,
  shadow jsonb,
  revision int not null,
  updated_at timestamptz not null default clock_timestamp(),
  primary key (registered_id, alias),
  foreign key (project_id, registered_id) references registered_adapters (project_id, id),
  foreign key (registered_id, version) references adapter_versions (registered_id, number)
);

create table alias_changes (
  id text primary key,
  project_id text not null references projects,
  registered_id text not null,
  alias text not null,
  revision int not null,
  action text not null check (action in ('promote', 'rollback', 'traffic', 'shadow', 'delete', 'automatic_rollback')),
  from_version int,
  to_version int,
  detail jsonb not null default '{}',
  actor text not null,
  reason text,
  created_at timestamptz not null default clock_timestamp(),
  unique (registered_id, alias, revision),
  foreign key (project_id, registered_id) references registered_adapters (project_id, id)
);
create index ix_alias_changes_registered on alias_changes (registered_id, created_at desc, id desc);

create table adapter_grants (
  id text primary key,
  registered_id text not null references registered_adapters,
  project_id text not null references projects,
  created_at timestamptz not null default clock_timestamp(),
  unique (registered_id, project_id)
);
create index ix_adapter_grants_project on adapter_grants (project_id);
"""

# Each looks through the policies of the table that it asks: a project sees the grants that name it, and by these the
# adapters of others that it may use.
GRANTED = "exists (select 1 from adapter_grants g where g.registered_id = {table}.{column})"
SHARED = {
    "registered_adapters": GRANTED.format(table="registered_adapters", column="id"),
    "adapter_versions": GRANTED.format(table="adapter_versions", column="registered_id"),
    "adapter_aliases": GRANTED.format(table="adapter_aliases", column="registered_id"),
    "adapters": "exists (select 1 from adapter_versions v where v.artifact_id = adapters.id and v.deleted_at is null)",
}
TENANT_TABLES = ("registered_adapters", "adapter_versions", "adapter_aliases", "alias_changes", "adapter_grants")
API_GRANTS = {
    "registered_adapters": "select, insert, update",
    "adapter_versions": "select, insert, update",
    "adapter_aliases": "select, insert, update, delete",
    "alias_changes": "select, insert",
    "adapter_grants": "select",
}
CONTROL_GRANTS = {
    "registered_adapters": "select, insert, update",
    "adapter_versions": "select, insert, update",
    "adapter_aliases": "select, insert, update, delete",
    "alias_changes": "select, insert",
    "adapter_grants": "select, insert, delete",
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
        op.execute(f"create policy registry_shared on {table} for select to weft_api using ({shared})")
    for role, grants in (("weft_api", API_GRANTS), ("weft_control", CONTROL_GRANTS)):
        for table, rights in grants.items():
            op.execute(f"grant {rights} on {table} to {role}")


def downgrade() -> None:
    raise NotImplementedError("restore a backup: dropping these tables would drop what tenants have registered")
