"""Connections and transactions. Two roles, two session types: a tenant's, bound by row-level security to one project,
and the control role's, which authenticates, schedules and meters. Owns the only commits; knows no tables.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime

from sqlalchemy import DateTime, MetaData, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from service.contracts.ids import ProjectId
from service.settings import ServiceSettings

NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {datetime: DateTime(timezone=True)}


class TenantSession(AsyncSession):
    """One transaction that sees one project's rows and no others. `project_id` is the proof."""

    project_id: ProjectId


class ControlSession(AsyncSession):
    """One transaction of the control role: keys, leases, replicas, the ledger. Never handed to a tenant's route."""


class UnsafeDatabase(RuntimeError):
    """The database would not keep tenants apart; the service refuses to start."""


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
        async with self._tenant() as session, session.begin():
            # Local to the transaction: a pooled connection must not remember the last tenant.
            await session.execute(text("select set_config('app.project', :project, true)"), {"project": project})
            session.project_id = project
            yield session

    @asynccontextmanager
    async def control(self) -> AsyncGenerator[ControlSession]:
        """A transaction of the control role; commits at the end, rolls back on any exception."""
        async with self._control() as session, session.begin():
            yield session

    async def verify(self) -> None:
        """Refuses roles that row-level security does not bind, and tenant tables that do not force it."""
        for engine in (self._tenant_engine, self._control_engine):
            await _verify_role(engine)
        await _verify_tables(self._tenant_engine)

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


async def _verify_role(engine: AsyncEngine) -> None:
    query = text("select current_user, rolsuper or rolbypassrls from pg_roles where rolname = current_user")
    async with engine.connect() as connection:
        user, unsafe = (await connection.execute(query)).one()
    if unsafe:
        raise UnsafeDatabase(
            f"database role {user!r} can bypass row-level security; use a role without SUPERUSER and BYPASSRLS"
        )


async def _verify_tables(engine: AsyncEngine) -> None:
    query = text(
        """
        select c.relname from pg_class c join pg_attribute a on a.attrelid = c.oid
        where a.attname = 'project_id' and c.relkind in ('r', 'p') and c.relnamespace = 'public'::regnamespace
          and not (c.relrowsecurity and c.relforcerowsecurity)
        """
    )
    async with engine.connect() as connection:
        open_tables = list((await connection.execute(query)).scalars())
    if open_tables:
        raise UnsafeDatabase(
            f"row-level security is not forced on {', '.join(sorted(open_tables))}; run the migrations"
        )
