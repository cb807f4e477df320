"""Lists as OpenAI sends them, in pages that begin after an id. Rows have `id` and `created_at`; ties fall to the id."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel
from sqlalchemy import Select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from service.errors import InvalidRequest

Order = Literal["asc", "desc"]


class Item(BaseModel):
    """What a list holds."""

    id: str


ItemT = TypeVar("ItemT", bound=Item)
RowT = TypeVar("RowT")


class Page(BaseModel, Generic[ItemT]):
    object: Literal["list"] = "list"
    data: list[ItemT]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Cursor(BaseModel):
    after: str | None = None
    limit: int
    order: Order = "desc"


def page(rows: Sequence[RowT], limit: int, shown: Callable[[RowT], ItemT]) -> Page[ItemT]:
    """The first `limit` of `rows`; one row more says that there are more."""
    data = [shown(row) for row in rows[:limit]]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return Page(data=data, first_id=first, last_id=last, has_more=len(rows) > limit)


async def rows_of(
    session: AsyncSession,
    query: Select[RowT],
    columns: tuple[InstrumentedAttribute[Any], InstrumentedAttribute[str]],
    cursor: Cursor,
    begin: Select[datetime, str],
) -> Sequence[RowT]:
    """Up to `limit + 1` rows of `query` behind the cursor.

    `columns` are (created_at, id); `begin` finds those of the cursor's row, perhaps deleted by now.
    """
    place = tuple_(*columns)
    if cursor.after is not None:
        found = (await session.execute(begin)).one_or_none()
        if found is None:
            raise InvalidRequest("No object with the id given as 'after'.", param="after")
        query = query.where(place < found if cursor.order == "desc" else place > found)
    ordered = [column.desc() if cursor.order == "desc" else column.asc() for column in columns]
    return (await session.scalars(query.order_by(*ordered).limit(cursor.limit + 1))).all()
