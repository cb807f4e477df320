"""What became of the requests that an alias sent to its versions. Counted by the gateways, who write it each second."""

from dataclasses import dataclass, fields

from sqlalchemy import cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from service.adapters.models import AliasRow
from service.registry.models import AliasCountRow


@dataclass(slots=True)
class Counts:
    """`errors` are among `requests`; `first_token_ms` is the sum over `streams`, `answer_ms` over `answers`."""

    requests: int = 0
    errors: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    streams: int = 0
    first_token_ms: float = 0.0
    answers: int = 0
    answer_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """One version of an alias. `fraction` is what it is meant to get of the requests, or of a shadow their copies."""

    version: int
    shadow: bool
    fraction: float
    counts: Counts


SUMS = tuple(each.name for each in fields(Counts))


async def of_alias(session: AsyncSession, alias: AliasRow) -> list[Part]:
    """Since its present revision, the versions in the order of the alias, its shadow last."""
    columns = AliasCountRow.__table__.c
    query = (
        select(AliasCountRow.version, AliasCountRow.shadow)
        .add_columns(*(cast(func.sum(columns[name]), columns[name].type) for name in SUMS))
        .where(
            AliasCountRow.registered_id == alias.registered_id,
            AliasCountRow.alias == alias.alias,
            AliasCountRow.revision == alias.revision,
        )
        .group_by(AliasCountRow.version, AliasCountRow.shadow)
    )
    known = {(row[0], row[1]): Counts(*row[2:]) for row in await session.execute(query)}
    weights = {each["version"]: float(each["weight"]) for each in alias.traffic or ()} or {alias.version: 1.0}
    total = sum(weights.values())
    parts = [(version, False, weight / total) for version, weight in weights.items()]
    if alias.shadow is not None:
        parts.append((alias.shadow["version"], True, float(alias.shadow["fraction"])))
    return [Part(*part, known.get(part[:2], Counts())) for part in parts]
