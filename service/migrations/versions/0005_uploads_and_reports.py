"""Uploads in parts, and reports on files.

Revision ID: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"

CHANGES = """
create table uploads (
  id text primary key,
  project_id text not null references projects,
  filename text not null,
  purpose text not null,
  mime_type text not null,
  bytes bigint not null check (bytes > 0),
  lifetime_seconds int,
  status text not null default 'pending' check (status in ('pending', 'completed', 'cancelled')),
  part_ids jsonb,
  md5 text,
  file_id text,
  created_at timestamptz not null default now(),
  expires_at timestamptz not null,
  assembling_until timestamptz,
  assembled_at timestamptz,
  purged_at timestamptz,
  unique (project_id, id),
  foreign key (project_id, file_id) references files (project_id, id),
  constraint ck_uploads_completed check (status <> 'completed' or (file_id is not null and part_ids is not null))
);
create index ix_uploads_pending on uploads (project_id) where status = 'pending';
create index ix_uploads_unassembled on uploads (created_at) where status = 'completed' and assembled_at is null;
create index ix_uploads_unpurged on uploads (expires_at) where purged_at is null;
create index ix_uploads_purged on uploads (purged_at) where purged_at is not null;

create table upload_parts (
  id text primary key,
  project_id text not null references projects,
  upload_id text not null,
  bytes bigint not null,
  sha256 text not null,
  created_at timestamptz not null default now(),
  stored_at timestamptz,
  foreign key (project_id, upload_id) references uploads (project_id, id)
);
create index ix_upload_parts_upload on upload_parts (project_id, upload_id);

create table file_reports (
  project_id text not null references projects,
  sha256 text not null,
  purpose text not null,
  compared_sha256 text not null default '',
  rules int not null,
  report jsonb not null,
  created_at timestamptz not null default now(),
  primary key (project_id, sha256, purpose, compared_sha256, rules)
);

create index ix_files_content on files (project_id, sha256) where purged_at is null;
"""

TENANT_TABLES = ("uploads", "upload_parts", "file_reports")
API_GRANTS = {
    "uploads": "select, insert, update",
    "upload_parts": "select, insert, update",
    "file_reports": "select, insert",
}
CONTROL_GRANTS = {
    "uploads": "select, update, delete",
    "upload_parts": "select, delete",
    "file_reports": "select, delete",
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
    raise NotImplementedError("restore a backup: dropping these tables would drop uploads under way")
