"""How adapters, their versions and aliases are shown in tables."""

from collections.abc import Iterable
from typing import Any

from weft.cli.output import Column, moment, pairs, size


def version(number: int | None) -> str | None:
    return None if number is None else f"v{number}"


def traffic(shares: Any, between: str = ", ") -> str | None:
    """`v1 90 %, v2 10 %`, of weights of any sum."""
    if not shares:
        return None
    total = sum(share.weight for share in shares)
    return between.join(f"v{share.version} {100 * share.weight / total:.4g} %" for share in shares)


def shadow(found: Any) -> str | None:
    return None if found is None else f"v{found.version} {100 * found.fraction:.4g} %"


def guard(rule: Any) -> str | None:
    if rule is None:
        return None
    return f"above {100 * rule.max_error_rate:.4g} % errors of {rule.min_requests} requests in {rule.window_seconds} s"


def promotion(found: Any) -> str | None:
    """What came of an evaluation that was to decide one."""
    if found is None:
        return None
    if found.promoted is None:
        return f"{found.alias}?"
    return f"{found.alias}: yes" if found.promoted else f"{found.alias}: no. {found.reason or ''}".strip()


ADAPTERS = (
    Column("NAME", lambda adapter: adapter.name),
    Column("BASE", lambda adapter: adapter.base_model),
    Column("LATEST", lambda adapter: version(adapter.latest_version)),
    Column("ALIASES", lambda adapter: pairs({name: version(number) for name, number in adapter.aliases.items()})),
    Column("CREATED", lambda adapter: moment(adapter.created_at)),
)
ADAPTER = (
    *ADAPTERS,
    Column("ID", lambda adapter: adapter.id),
    Column("DESCRIPTION", lambda adapter: adapter.description),
    Column("METADATA", lambda adapter: pairs(adapter.metadata)),
    Column("DELETED", lambda adapter: moment(adapter.deleted_at)),
)


def with_aliases(aliases: Iterable[Any]) -> tuple[Column, ...]:
    """An adapter's columns, with its aliases as they split their traffic."""
    shown = pairs({each.alias: traffic(each.traffic, " + ") or version(each.version) for each in aliases})
    return tuple(Column("ALIASES", lambda _: shown) if column.title == "ALIASES" else column for column in ADAPTER)


VERSIONS = (
    Column("MODEL", lambda found: found.model),
    Column("FROM", lambda found: f"{found.source.type} {found.source.id}"),
    Column("BASE", lambda found: found.base_model),
    Column("RANK", lambda found: found.rank),
    Column("SIZE", lambda found: size(found.bytes)),
    Column("PINNED", lambda found: found.pinned),
    Column("CREATED", lambda found: moment(found.created_at)),
)
RESIDENCY = (
    Column("MODEL", lambda found: found.model),
    Column("PINNED", lambda found: found.pinned),
    Column("REPLICAS", lambda found: ", ".join(f"{on.replica} ({on.tier or '?'})" for on in found.replicas)),
)
ALIASES = (
    Column("ALIAS", lambda alias: alias.id),
    Column("VERSION", lambda alias: version(alias.version)),
    Column("TRAFFIC", lambda alias: traffic(alias.traffic)),
    Column("SHADOW", lambda alias: shadow(alias.shadow)),
    Column("ROLLS BACK", lambda alias: guard(alias.automatic_rollback)),
    Column("REVISION", lambda alias: alias.revision),
    Column("CHANGED", lambda alias: moment(alias.updated_at)),
)
TRAFFIC = (
    Column("MODEL", lambda each: each.model),
    Column("PART", lambda each: f"{100 * each.fraction:.4g} %" + (" copied" if each.shadow else "")),
    Column("REQUESTS", lambda each: each.requests),
    Column("ERRORS", lambda each: each.errors),
    Column("ERROR RATE", lambda each: None if each.error_rate is None else f"{100 * each.error_rate:.4g} %"),
    Column("INPUT TOKENS", lambda each: each.input_tokens),
    Column("OUTPUT TOKENS", lambda each: each.output_tokens),
    Column("FIRST TOKEN MS", lambda each: each.first_token_ms),
    Column("ANSWER MS", lambda each: each.answer_ms),
)
CHANGES = (
    Column("TIME", lambda change: moment(change.created_at)),
    Column("ALIAS", lambda change: change.alias),
    Column("ACTION", lambda change: change.action),
    Column("FROM", lambda change: version(change.from_version)),
    Column("TO", lambda change: version(change.to_version)),
    Column("TRAFFIC", lambda change: traffic(change.traffic)),
    Column("REASON", lambda change: change.reason),
    Column("BY", lambda change: change.actor),
)
EVALUATIONS = (
    Column("ID", lambda found: found.id),
    Column("MODEL", lambda found: found.model),
    Column("STATUS", lambda found: found.status),
    Column("GRADER", lambda found: found.grader.get("type")),
    Column("SCORE", lambda found: found.score),
    Column("AGAINST", lambda found: found.current_score),
    Column("EXAMPLES", lambda found: found.results and found.results.examples),
    Column("PROMOTED", lambda found: promotion(found.promotion)),
    Column("ERROR", lambda found: found.error and found.error.message),
    Column("CREATED", lambda found: moment(found.created_at)),
)
PERMISSIONS = (
    Column("PROJECT", lambda permission: permission.project_id),
    Column("ID", lambda permission: permission.id),
    Column("CREATED", lambda permission: moment(permission.created_at)),
)
