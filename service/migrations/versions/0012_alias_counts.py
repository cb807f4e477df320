"""What came of requests by the alias that led them to a version; how often an evaluation has begun to compare.

Revision ID: 0012
"""

from alembic import op

revision = "0012"
down_revision = "0010"

# The counts of a day go: they do not say which alias they came through.
CHANGES = """
drop table version_counts;
create table alias_counts (
  registered_id text not null,
  alias text not null,
  revision int not null,
  version int not null,
  shadow boolean not null,
  bucket timestamptz not null,
  project_id text not null references projects,
  requests bigint not null,
  errors bigint not null,
  input_tokens bigint not null,
  output_tokens bigint not null,
  streams bigint not null,
  first_token_ms double precision not null,
  answers bigint not null,
  answer_ms double precision not null,
  primary key (registered_id, alias, revision, version, shadow, bucket)
);
create index ix_alias_counts_bucket on alias_counts (bucket);

alter table evaluations add column rounds int not null default 0;
"""

TENANT_TABLES = ("alias_counts",)
API_GRANTS = {"alias_counts": "select"}
CONTROL_GRANTS = {"alias_counts": "select, insert, update, delete"}


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
    raise NotImplementedError("restore a backup: what came of requests was not kept in the older form")
