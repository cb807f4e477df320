"""The monthly budget of a project: what it spent since the month began (UTC), by the price list.

Gateways ask `Budgets`, which knows the answer from memory and renews it every few seconds for those who asked; a
project may overspend by what it uses meanwhile. A transaction asks the ledger itself: with `require_budget` to go on,
and with `require_unreserved` to begin something, for which what unfinished jobs are expected to cost is set aside:
they are billed when they are done.
"""

import asyncio
import logging
import time
from decimal import Decimal

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from service.contracts.ids import ProjectId
from service.contracts.job import TERMINAL
from service.db import Database, DatabaseUnavailable, TenantSession
from service.errors import RateLimited
from service.settings import ServiceSettings
from service.tenants.auth import Tenant
from service.tenants.models import ProjectRow
from service.usage.models import PRICED, UsageRow
from service.usage.prices import Prices

REFRESH_SECONDS = 5.0
IDLE_SECONDS = 600.0
MONTH = text("date_trunc('month', now(), 'UTC')")
Training = tuple[str, int] | None
"""Base model and tokens."""
# Text, because jobs lie above this package.
EXPECTED = text(
    "select model, sum(expected_tokens) from jobs where project_id = :project and status <> all(:terminal) "
    "group by model"
)

log = logging.getLogger("service.limits")


class Budgets:
    """One process's memory of who has spent everything."""

    def __init__(self, settings: ServiceSettings, database: Database) -> None:
        self._prices = Prices(settings)
        self._database = database
        self._asked: dict[ProjectId, float] = {}
        self._spent: dict[ProjectId, Decimal] = {}
        self._news = asyncio.Event()

    def require(self, tenant: Tenant) -> None:
        """Raises RateLimited where the budget is spent. Costs nothing for projects without one."""
        budget = tenant.limits.budget_cents
        if budget is None:
            return
        if tenant.project_id not in self._asked:
            self._news.set()
        self._asked[tenant.project_id] = time.monotonic()
        if self._spent.get(tenant.project_id, Decimal(0)) * 100 >= budget:
            raise spent(budget)

    async def run(self) -> None:
        """Renews until cancelled."""
        while True:
            try:
                await self.refresh()
            except DatabaseUnavailable as error:
                log.warning("budgets are looked up later: %s", error)
            try:
                async with asyncio.timeout(REFRESH_SECONDS):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def refresh(self) -> None:
        self._news.clear()
        since = time.monotonic() - IDLE_SECONDS
        self._asked = {project: asked for project, asked in self._asked.items() if asked > since}
        found: dict[ProjectId, Decimal] = {}
        for project in list(self._asked):
            async with self._database.tenant(project) as session:
                found[project] = await spent_this_month(session, project, self._prices)
        self._spent = found


async def require_budget(session: TenantSession, settings: ServiceSettings) -> None:
    """Raises RateLimited where the session's project has spent its budget."""
    budget = await _budget(session)
    if budget is not None and await spent_this_month(session, session.project_id, Prices(settings)) * 100 >= budget:
        raise spent(budget)


async def require_unreserved(session: TenantSession, settings: ServiceSettings, training: Training = None) -> None:
    """Raises RateLimited where all of the budget is spent or set aside, or would be passed by the `training` wanted."""
    budget, prices = await _budget(session), Prices(settings)
    if budget is None:
        return
    cents = await spent_this_month(session, session.project_id, prices) * 100
    if cents >= budget:
        raise spent(budget)
    unfinished = await session.execute(EXPECTED, {"project": session.project_id, "terminal": sorted(TERMINAL)})
    set_aside = sum((_cents(prices, model, int(tokens)) for model, tokens in unfinished), Decimal(0))
    wanted = _cents(prices, *training) if training else Decimal(0)
    if cents + set_aside >= budget or cents + set_aside + wanted > budget:
        raise _set_aside(budget, cents, set_aside, wanted)


async def _budget(session: TenantSession) -> int | None:
    own = select(ProjectRow.monthly_budget_cents).where(ProjectRow.id == session.project_id)
    return await session.scalar(own)


def _cents(prices: Prices, model: str, trained: int) -> Decimal:
    return sum((item.amount for item in prices.items(model, 0, 0, trained)), Decimal(0)) * 100


async def spent_this_month(session: AsyncSession, project: ProjectId, prices: Prices) -> Decimal:
    """What the ledger says; storage is not in it, nor are copies of requests that nobody made."""
    query = (
        select(
            PRICED,
            func.sum(UsageRow.prompt_tokens),
            func.sum(UsageRow.completion_tokens),
            func.sum(UsageRow.trained_tokens),
        )
        .where(UsageRow.project_id == project, UsageRow.created_at >= MONTH, ~UsageRow.shadow)
        .group_by(PRICED)
    )
    rows = (await session.execute(query)).all()
    lines = [item for model, *counts in rows for item in prices.items(model, *(int(count) for count in counts))]
    return sum((item.amount for item in lines), Decimal(0))


def spent(budget: int) -> RateLimited:
    return RateLimited(
        f"Your project has spent its budget of {budget / 100:.2f} for this month; ask your administrator for more.",
        code="insufficient_quota",
        headers={"x-should-retry": "false"},
    )


def _set_aside(budget: int, cents: Decimal, set_aside: Decimal, wanted: Decimal) -> RateLimited:
    beyond = f", and this would take about {wanted / 100:.2f}" if wanted else ""
    return RateLimited(
        f"Of your project's budget of {budget / 100:.2f} for this month, {cents / 100:.2f} are spent and "
        f"{set_aside / 100:.2f} set aside for unfinished fine-tuning jobs{beyond}; wait for jobs to end, cancel some, "
        "or ask your administrator for more.",
        code="insufficient_quota",
        headers={"x-should-retry": "false"},
    )
