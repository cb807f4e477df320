"""Runs migrations as the owner role, named by WEFT_MIGRATION_DATABASE_URL or by `-x url=...`. Async driver, one transaction."""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine

import service.adapters.models
import service.files.models
import service.jobs.models
import service.replicas.models
import service.tenants.models
import service.usage.models  # noqa: F401  (importing the models fills the metadata)
from service.db import Base


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


async def main() -> None:
    url = context.get_x_argument(as_dictionary=True).get("url") or os.environ["WEFT_MIGRATION_DATABASE_URL"]
    engine = create_async_engine(url, poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)
        await connection.commit()
    await engine.dispose()


asyncio.run(main())
