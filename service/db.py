"""Connections and transactions. Two roles, two session types: a tenant's, bound by row-level security to one project,
and the control role's, which authenticates, schedules and meters. Owns the only commits; knows no tables.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import DateTime, Double, MetaData, Text, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from service.contracts.ids import ProjectId
from service.settings import ServiceSettings

SCHEMA = "0016"
"""The newest revision in `migrations/versions`; the service starts over no other."""

NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: DateTime(timezone=True), str: Text(), float: Double()}


class TenantSession(AsyncSession):
    """One transaction that sees one project's rows and no others. `project_id` is the proof."""

    project_id: ProjectId


class ControlSession(AsyncSession):
    """One transaction of the control role: keys, leases, replicas, the ledger. Never handed to a tenant's route."""


class UnsafeDatabase(RuntimeError):
    """The database would not keep tenants apart; the service refuses to start."""


class DatabaseUnavailable(ConnectionError):
    """The database cannot be reached, or cannot write, just now; the same call may succeed later."""


# SQLSTATE classes and codes that say "not now": connection lost, no resources left, shut down or starting, read-only
# after a failover, a lock or a statement that took too long, a deadlock.
PASSING_CLASSES = ("08", "53", "57P")
PASSING_CODES = {"25006", "40001", "40P01", "55P03", "57014"}


class Database:
    """Engines and session factories of one process."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._tenant_engine = _engine(settings.database_url.get_secret_value(), pool=8)
        self._control_engine = _engine(settings.control_database_url.get_secret_value(), pool=8)
        self._tenant = async_sessionmaker(self._tenant_engine, class_=TenantSession, expire_on_commit=False)
        self._control = async_sessionmaker(self._control_engine, class_=ControlSession, expire_on_commit=False)

    @asynccontextmanager
    async def tenant(self, project: ProjectId) -> AsyncGenerator[TenantSession]:
        """A transaction as `project`; commits at the end, rolls back on any exception."""
        async with _translated(), self._tenant() as session, session.begin():
            await _connect(session)
            # Local to the transaction: a pooled connection must not remember the last tenant.
            await session.execute(text("select set_config('app.project', :project, true)"), {"project": project})
            session.project_id = project
            yield session

    @asynccontextmanager
    async def control(self) -> AsyncGenerator[ControlSession]:
        """A transaction of the control role; commits at the end, rolls back on any exception."""
        async with _translated(), self._control() as session, session.begin():
            await _connect(session)
            yield session

    async def verify(self) -> None:
        """Refuses another schema, a role that row-level security does not bind, tenant tables that do not force it."""
        for sessions in (self._tenant, self._control):
            async with _translated(), sessions() as session:
                await _connect(session)
                await _verify_role(session)
                await _verify_schema(session)
                await _verify_tables(session)

    async def close(self) -> None:
        await self._tenant_engine.dispose()
        await self._control_engine.dispose()


def _engine(url: str, pool: int) -> AsyncEngine:
    return create_async_engine(
        url,
        pool_size=pool,
        max_overflow=8,
        pool_timeout=5,
        pool_pre_ping=True,
        connect_args={"timeout": 5, "command_timeout": 30, "server_settings": {"application_name": "weft-service"}},
    )


async def _connect(session: AsyncSession) -> None:
    """Takes a connection now, so that whatever goes wrong here is known to be the database's doing."""
    try:
        await session.connection()
    except (OSError, DBAPIError, PoolTimeout) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise DatabaseUnavailable(f"the database cannot be reached: {reason}") from error


@asynccontextmanager
async def _translated() -> AsyncGenerator[None]:
    """Turns a driver's passing failures into DatabaseUnavailable; its other errors are bugs and stay as they are."""
    try:
        yield
    except TimeoutError as error:
        raise DatabaseUnavailable("a statement took too long") from error
    except DBAPIError as error:
        if error.connection_invalidated or _passes(error):
            raise DatabaseUnavailable(str(error.orig)) from error
        raise


def _passes(error: DBAPIError) -> bool:
    code = getattr(error.orig, "sqlstate", None) or ""
    return code.startswith(PASSING_CLASSES) or code in PASSING_CODES


async def _verify_role(session: AsyncSession) -> None:
    query = text("select current_user, rolsuper or rolbypassrls from pg_roles where rolname = current_user")
    user, unsafe = (await session.execute(query)).one()
    if unsafe:
        raise UnsafeDatabase(
            f"database role {user!r} can bypass row-level security; use a role without SUPERUSER and BYPASSRLS"
        )


async def _verify_schema(session: AsyncSession) -> None:
    if await session.scalar(text("select to_regclass('public.alembic_version')")) is None:
        raise UnsafeDatabase("the database is empty; run the migrations")
    found = await session.scalar(text("select version_num from alembic_version"))
    if found != SCHEMA:
        raise UnsafeDatabase(f"the database has schema {found}, this service needs {SCHEMA}; run the migrations")


async def _verify_tables(session: AsyncSession) -> None:
    query = text(
        """
        select c.relname from pg_class c
        where c.relkind in ('r', 'p') and c.relnamespace = 'public'::regnamespace
          and (c.relname = 'projects' or exists (
            select 1 from pg_attribute a where a.attrelid = c.oid and a.attname = 'project_id' and not a.attisdropped))
          and not (c.relrowsecurity and c.relforcerowsecurity)
        """
    )
    open_tables = list((await session.execute(query)).scalars())
    if open_tables:
        raise UnsafeDatabase(
            f"row-level security is not forced on {', '.join(sorted(open_tables))}; run the migrations"
        )
