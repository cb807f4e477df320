"""What came of requests to registered versions; in the ledger, the base of names that do not say it, and copies.

Revision ID: 0009
"""

from alembic import op

revision = "0009"
down_revision = "0008"

CHANGES = """
alter table usage add column base_model text;
alter table usage add column shadow boolean not null default false;

create table version_counts (
  registered_id text not null,
  version int not null,
  shadow boolean not null,
  bucket timestamptz not null,
  project_id text not null references projects,
  requests bigint not null,
  errors bigint not null,
  primary key (registered_id, version, shadow, bucket)
);
create index ix_version_counts_bucket on version_counts (bucket);
"""

TENANT_TABLES = ("version_counts",)
API_GRANTS = {"version_counts": "select"}
CONTROL_GRANTS = {"version_counts": "select, insert, update, delete"}


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
    raise NotImplementedError("restore a backup: what copies of requests cost could not be told apart any more")
