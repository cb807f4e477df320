"""Runs migrations as the owner role, named by WEFT_MIGRATION_DATABASE_URL or by `-x url=...`."""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine

from service.adapters import models as adapters
from service.db import Base
from service.files import models as files
from service.idempotency import models as idempotency
from service.jobs import models as jobs
from service.limits import models as limits
from service.replicas import models as replicas
from service.tenants import models as tenants
from service.uploads import models as uploads
from service.usage import models as usage
from service.webhooks import models as webhooks

# Importing them fills the metadata that autogeneration compares with.
MODELS = (adapters, files, idempotency, jobs, limits, replicas, tenants, uploads, usage, webhooks)


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
