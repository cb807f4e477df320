"""Aliases as the public API shows them: what each stands for, what was done to it, and what became of its requests."""

import math
from typing import Literal

from pydantic import BaseModel

from service.adapters.aliases import version_name
from service.adapters.models import AliasChangeRow, AliasRow
from service.listing import Item
from service.registry.bodies import AutomaticRollback
from service.registry.traffic import Part


class Share(BaseModel):
    version: int
    weight: float


class Shadow(BaseModel):
    version: int
    fraction: float


class Alias(Item):
    """`id` is how a request names it as its model."""

    object: Literal["adapter.alias"] = "adapter.alias"
    adapter: str
    alias: str
    version: int
    traffic: list[Share] | None
    shadow: Shadow | None
    automatic_rollback: AutomaticRollback | None
    revision: int
    updated_at: int

    @classmethod
    def of(cls, name: str, row: AliasRow) -> "Alias":
        return cls(
            id=f"{name}@{row.alias}",
            adapter=name,
            alias=row.alias,
            version=row.version,
            traffic=[Share.model_validate(share) for share in row.traffic] if row.traffic else None,
            shadow=Shadow.model_validate(row.shadow) if row.shadow else None,
            automatic_rollback=AutomaticRollback.model_validate(guard) if (guard := row.automatic_rollback) else None,
            revision=row.revision,
            updated_at=math.floor(row.updated_at.timestamp()),
        )


class AliasDeleted(BaseModel):
    object: Literal["adapter.alias"] = "adapter.alias"
    id: str
    adapter: str
    alias: str
    deleted: Literal[True] = True


class Change(Item):
    """`traffic` and `shadow` are those that the change led to; `actor` is the id of the key that made it."""

    object: Literal["adapter.change"] = "adapter.change"
    adapter: str
    alias: str
    revision: int
    action: str
    from_version: int | None
    to_version: int | None
    traffic: list[Share] | None
    shadow: Shadow | None
    actor: str
    reason: str | None
    created_at: int

    @classmethod
    def of(cls, name: str, row: AliasChangeRow) -> "Change":
        return cls(
            id=row.id,
            adapter=name,
            alias=row.alias,
            revision=row.revision,
            action=row.action,
            from_version=row.from_version,
            to_version=row.to_version,
            traffic=row.detail.get("traffic"),
            shadow=row.detail.get("shadow"),
            actor=row.actor,
            reason=row.reason,
            created_at=int(row.created_at.timestamp()),
        )


class VersionTraffic(BaseModel):
    """What became of the requests that one version got. `fraction` is the part of the alias's requests that it is meant
    to get; of a shadow, the part that is copied to it.

    `errors` are those of `requests` that failed through no fault of the client or of the fleet; what the client did
    wrong is in neither. Tokens are those of answers. The times are means, null where there was nothing to measure: to
    the first token of streams, and to the end of answers that were not streamed. A copy also waits behind requests.
    """

    version: int
    model: str
    shadow: bool
    fraction: float
    requests: int
    errors: int
    error_rate: float | None
    input_tokens: int
    output_tokens: int
    first_token_ms: float | None
    answer_ms: float | None

    @classmethod
    def of(cls, name: str, part: Part) -> "VersionTraffic":
        counts = part.counts
        return cls(
            version=part.version,
            model=version_name(name, part.version),
            shadow=part.shadow,
            fraction=part.fraction,
            requests=counts.requests,
            errors=counts.errors,
            error_rate=counts.errors / counts.requests if counts.requests else None,
            input_tokens=counts.input_tokens,
            output_tokens=counts.output_tokens,
            first_token_ms=_mean(counts.first_token_ms, counts.streams),
            answer_ms=_mean(counts.answer_ms, counts.answers),
        )


class Traffic(BaseModel):
    """Of every version that the alias sends anything to, since `since`, when it came to its present `revision`."""

    object: Literal["adapter.alias.traffic"] = "adapter.alias.traffic"
    adapter: str
    alias: str
    revision: int
    since: int
    versions: list[VersionTraffic]

    @classmethod
    def of(cls, name: str, row: AliasRow, parts: list[Part]) -> "Traffic":
        return cls(
            adapter=name,
            alias=row.alias,
            revision=row.revision,
            since=math.floor(row.updated_at.timestamp()),
            versions=[VersionTraffic.of(name, part) for part in parts],
        )


def _mean(total: float, of: int) -> float | None:
    return round(total / of, 3) if of else None
