"""Costs: what was used and stored, by bucket, times the price list."""

from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from service.db import ControlSession
from service.settings import ServiceSettings
from service.usage import reports
from service.usage.prices import LineItem, Prices
from service.usage.reports import Range, Wanted
from service.usage.schemas import Amount, Cost


@dataclass(frozen=True)
class CostRow:
    """`project_id` and `line_item` are None where costs were not grouped by them."""

    begin: datetime
    project_id: str | None
    line_item: str | None
    amount: Decimal
    quantity: Decimal
    unit: str


async def costs(
    session: ControlSession,
    settings: ServiceSettings,
    span: Range,
    projects: list[str] | None,
    group_by: frozenset[str],
) -> list[CostRow]:
    prices = Prices(settings)
    summed: dict[tuple[datetime, str | None, str | None], CostRow] = {}
    for begin, project, item in await _items(session, prices, span, projects):
        key = (begin, project if "project_id" in group_by else None, item.name if "line_item" in group_by else None)
        known = summed.get(key) or CostRow(*key, Decimal(0), Decimal(0), item.unit)
        summed[key] = replace(known, amount=known.amount + item.amount, quantity=known.quantity + item.quantity)
    return list(summed.values())


async def _items(
    session: ControlSession, prices: Prices, span: Range, projects: list[str] | None
) -> list[tuple[datetime, str, LineItem]]:
    found: list[tuple[datetime, str, LineItem]] = []
    wanted = Wanted(project_ids=projects, group_by=("project_id", "model"), priced=True)
    for row in await reports.used(session, None, span, wanted):
        lines = prices.items(str(row.group.model), row.prompt_tokens, row.completion_tokens, row.trained_tokens)
        found += [(row.begin, str(row.group.project_id), line) for line in lines]
    for kept in await reports.stored(session, span, projects):
        found.append((kept.begin, kept.project_id, prices.storage(kept.byte_seconds)))
    return found


def shown(row: CostRow, currency: str) -> Cost:
    """A quantity has a meaning for one line item only."""
    quantity = None if row.line_item is None else float(row.quantity)
    return Cost(
        amount=Amount(value=float(row.amount), currency=currency),
        line_item=row.line_item,
        project_id=row.project_id,
        quantity=quantity,
        quantity_unit=None if quantity is None else row.unit,
    )
