-- Run once by a database administrator, before the migrations. The embedded stack does the same by itself.
-- The three roles: weft_owner owns the tables and runs migrations; weft_api serves tenants; weft_control schedules.
-- None may bypass row-level security; the service refuses to start with one that could.
create role weft_owner login nosuperuser nobypassrls;
create role weft_api login nosuperuser nobypassrls;
create role weft_control login nosuperuser nobypassrls;
