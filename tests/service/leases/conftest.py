from collections.abc import AsyncIterator

import pytest_asyncio

from service.settings import ServiceSettings
from tests.service.stage import Stage, open_stage


@pytest_asyncio.fixture(scope="module")
async def stage(service_settings: ServiceSettings) -> AsyncIterator[Stage]:
    """One module's database without an application; nothing reaps unless the test does."""
    async with open_stage(service_settings) as made:
        yield made
