"""A stand-in service and an agent that is not started yet, for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from pydantic import SecretStr

from tests.trainer.agent.agent_harness import AgentProcess
from tests.trainer.agent.stand_in_service import StandInService
from tests.trainer.agent.stand_in_store import TOKEN
from trainer.control import ServiceClient


@pytest.fixture
async def service() -> AsyncIterator[StandInService]:
    service = StandInService()
    await service.start()
    yield service
    await service.stop()


@pytest.fixture
async def agent(service: StandInService, tmp_path: Path) -> AsyncIterator[AgentProcess]:
    agent = AgentProcess(tmp_path, service)
    yield agent
    await agent.close()


@pytest.fixture
async def client(service: StandInService) -> AsyncIterator[ServiceClient]:
    async with aiohttp.ClientSession() as session:
        yield ServiceClient(session, service.url, SecretStr(TOKEN))
