"""What a gateway asks before it passes a request on: is there budget, and are there requests and tokens left."""

import asyncio
from collections.abc import Mapping
from typing import Any

from service.db import Database
from service.limits.rates import Admission, Rates
from service.limits.spend import Budgets
from service.settings import ServiceSettings
from service.tenants.auth import Tenant

BYTES_PER_TOKEN = 4


class Limiter:
    """One process's budgets and rates."""

    def __init__(self, settings: ServiceSettings, database: Database) -> None:
        self.rates = Rates(settings, database)
        self.budgets = Budgets(settings, database)

    def admit(self, tenant: Tenant, tokens: int) -> Admission:
        """Takes one request and an estimate of its tokens. Raises RateLimited where there is not that much left."""
        self.budgets.require(tenant)
        return self.rates.admit(tenant, tokens)

    async def run(self) -> None:
        """Keeps both in step with other processes, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.rates.run())
            group.create_task(self.budgets.run())


def estimate(body_bytes: int, fields: Mapping[str, Any], sequences: int) -> int:
    """OpenAI's rule: a token for each four characters sent, and as many as may be answered."""
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    wanted = next((fields[name] for name in names if name in fields), None)
    answer = wanted if type(wanted) is int and wanted > 0 else 0
    return body_bytes // BYTES_PER_TOKEN + answer * sequences
