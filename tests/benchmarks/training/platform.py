"""Weft as it runs, less the replica: nobody asks these adapters anything. Every part as `weftd up` starts it.

Owns starting and stopping, keys of projects and questions to the database. The trainer is started anew for each
setting that is measured; the rest stays.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from openai import OpenAI

from deploy.local import base_model, postgres, secrets
from deploy.local.admin import Admin
from deploy.local.children import Child
from deploy.local.display import Display
from deploy.local.folder import DataFolder
from deploy.local.stack import Stack
from deploy.local.supervisor import Supervisor
from tests.conftest import free_port

NAME = "bench"
READY_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Platform:
    stack: Stack
    database: postgres.Postgres

    @contextlib.asynccontextmanager
    async def trainer(self, **settings: str) -> AsyncGenerator[None]:
        """A trainer with its base warm, on one thread. `settings` are its own, by name without the prefix."""
        own = {f"WEFT_TRAINER_{name.upper()}": value for name, value in {"threads": "1", **settings}.items()}
        part = self.stack.trainer()
        child = Child(
            dataclasses.replace(part, env={**part.env, **own}), self.stack.folder.log("trainer"), print, lambda: None
        )
        keeping = asyncio.create_task(child.keep())
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not await part.ready():
                if time.monotonic() > deadline or child.deaths:
                    raise RuntimeError(f"the trainer does not start; see {self.stack.folder.log('trainer')}")
                await asyncio.sleep(0.1)
            yield
        finally:
            await child.stop()
            await keeping

    def client(self, project: str) -> OpenAI:
        """As a tenant has it."""
        key = Admin(self.stack.url, self.stack.secrets.admin_key).create_key(project)
        return OpenAI(base_url=f"{self.stack.url}/v1", api_key=key)

    async def fetch(self, query: str, *arguments: object) -> list[Any]:
        connection = await self.database.connect("postgres", postgres.DATABASE)
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()


@contextlib.asynccontextmanager
async def running(base: Path, root: Path, name: str = NAME) -> AsyncGenerator[Platform]:
    """Database, storage and service over the base in a folder, with all they keep below `root`."""
    data = DataFolder(root)
    data.create()
    data.clear_temporary(make=True)
    stack = Stack(data, data.ports(free_port(), ["objects"]), secrets.load_or_create(root), base_model.read(base, name))
    supervisor = Supervisor(data, Display())
    try:
        supervisor.add(stack.objects())
        part, server = await asyncio.to_thread(stack.database)
        supervisor.add(part)
        await supervisor.until_ready("postgres")
        await server.create_roles()
        await server.create_database()
        await postgres.migrate(server.url("weft_owner"))
        await supervisor.until_ready("objects")
        supervisor.add(stack.service(server))
        await supervisor.until_ready("service")
        yield Platform(stack, server)
    finally:
        await supervisor.stop()
        data.forget_processes()
