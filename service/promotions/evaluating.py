"""One claimed evaluation, as far as it goes in one turn: what is compared, the examples asked, the scores recorded."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import func, select

from service.adapters.aliases import find_version, version_name
from service.adapters.models import AliasRow, RegisteredRow, VersionRow
from service.contracts.ids import FileId
from service.contracts.layout import file_key
from service.contracts.store import ObjectMissing
from service.db import ControlSession, TenantSession
from service.errors import ApiError, InvalidRequest, NotFound, RateLimited
from service.files.models import FileRow
from service.gateway.resolve import Target
from service.gateway.routes import Gateway
from service.jobs.graders import Grader, Loss
from service.limits.spend import require_budget
from service.promotions import losses
from service.promotions.asking import Asker, NotNow
from service.promotions.deciding import Measured, Overtaken, conclude, fail
from service.promotions.examples import Example, sample
from service.promotions.holding import Holding, Scored
from service.promotions.scoring import Side, mean, score, shown
from service.registry.models import EvaluationRow
from service.resources import Resources

SLICE_SECONDS = 60.0
"""After so long others that wait have their turn."""
AT_ONCE = 4
"""Examples that are asked at the same time, of each side."""
GRADER: TypeAdapter[Grader] = TypeAdapter(Grader)


class TurnOver(Exception):
    """Something is left for the next turn."""


@dataclass(frozen=True)
class Compared:
    """The versions that are measured, the evaluated one first, and the examples' file."""

    versions: Sequence[VersionRow]
    sides: Sequence[Side]
    file: FileRow


async def evaluate(resources: Resources, gateway: Gateway, holding: Holding) -> None:
    """Ends the evaluation, or raises what keeps it from its end: NotNow, TurnOver, Lost."""
    try:
        if holding.row.status == "queued":
            await _begin(resources, holding)
        measured = await _measured(resources, gateway, holding)
    except RateLimited as spent:
        raise NotNow(spent.message) from spent
    except ApiError as problem:
        await fail(resources, holding, problem)
    except ObjectMissing:
        problem = InvalidRequest(f"The file '{holding.row.file_id}' was deleted.", code="file_not_found")
        await fail(resources, holding, problem)
    else:
        try:
            await conclude(resources, holding, measured)
        except Overtaken as overtaken:
            await _begin(resources, holding)
            raise TurnOver from overtaken


async def _begin(resources: Resources, holding: Holding) -> None:
    """Fixes what the alias stands for now: that is what has to be beaten, and what must not have changed at the end."""
    row = holding.row
    async with resources.database.control() as session:
        alias = await _alias(session, row)
        row.revision, row.current_version = (alias.revision, alias.version) if alias else (0, None)
        row.rounds += 1
        fixed = {name: getattr(row, name) for name in ("revision", "current_version", "rounds")}
        began = func.coalesce(EvaluationRow.started_at, func.clock_timestamp())
        await holding.change(session, status="running", started_at=began, **fixed)


async def _alias(session: ControlSession, row: EvaluationRow) -> AliasRow | None:
    query = select(AliasRow).where(AliasRow.registered_id == row.registered_id, AliasRow.alias == row.alias)
    return await session.scalar(query)


async def _measured(resources: Resources, gateway: Gateway, holding: Holding) -> Measured:
    row = holding.row
    async with resources.database.tenant(holding.project) as session:
        await require_budget(session, resources.settings)
        compared = await _compared(session, row)
    grader = GRADER.validate_python(row.grader)
    if isinstance(grader, Loss) and (known := losses.recorded(compared.versions, compared.file)):
        return Measured(known[0], known[1] if len(known) > 1 else None, {"examples": compared.file.examples})
    asker = Asker(gateway, holding.project, row.key_id)
    await _ask(resources, holding, asker, grader, compared)
    return await _summed(holding, compared)


async def _compared(session: TenantSession, row: EvaluationRow) -> Compared:
    numbers = [row.version]
    if row.must_beat_current and row.current_version not in (None, row.version):
        numbers.append(row.current_version)  # pyright: ignore[reportArgumentType]
    name = await session.scalar(select(RegisteredRow.name).where(RegisteredRow.id == row.registered_id))
    found = [await _side(session, row, version_name(name or "", number), number) for number in numbers]
    file = (await session.scalars(select(FileRow).where(FileRow.id == row.file_id))).one()
    return Compared([version for version, _ in found], [side for _, side in found], file)


async def _side(session: TenantSession, row: EvaluationRow, name: str, number: int) -> tuple[VersionRow, Side]:
    # Not as the gateway resolves names: what is asked here must not count as the version's traffic.
    model = await find_version(session, session.project_id, name)
    known = select(VersionRow).where(VersionRow.registered_id == row.registered_id, VersionRow.number == number)
    version = await session.scalar(known)
    if model is None or version is None:
        raise NotFound(f"The version '{name}' is no longer there.", code="version_not_found")
    return version, Side(number, Target(model.name, model.manifest.base_model, model.adapter_id))


async def _ask(resources: Resources, holding: Holding, asker: Asker, grader: Grader, compared: Compared) -> None:
    """Scores all that is not scored yet. Raises TurnOver where that takes longer than a turn."""
    end, file = time.monotonic() + SLICE_SECONDS, compared.file
    done = {(row.line, row.version) for row in await holding.scores()}
    waiting: list[tuple[Example, Side]] = []
    async for example in sample(
        resources.store, file_key(holding.project, FileId(file.id)), file.examples, file.sha256
    ):
        waiting += [(example, side) for side in compared.sides if (example.line, side.version) not in done]
        if len(waiting) >= AT_ONCE * len(compared.sides):
            await holding.record(await _scored(asker, grader, waiting))
            waiting = []
            if time.monotonic() > end:
                raise TurnOver
    await holding.record(await _scored(asker, grader, waiting))


async def _scored(asker: Asker, grader: Grader, waiting: Sequence[tuple[Example, Side]]) -> list[Scored]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(score(asker, grader, side, example)) for example, side in waiting]
    except ExceptionGroup as several:
        raise several.exceptions[0] from several
    return [task.result() for task in tasks]


async def _summed(holding: Holding, compared: Compared) -> Measured:
    rows = await holding.scores()
    numbers = [side.version for side in compared.sides]
    own, *others = [mean(rows, number) for number in numbers]
    results: dict[str, Any] = shown(rows, numbers[0], numbers[1] if others else None)
    if own is None or None in others:
        problem = next((row.problem for row in rows if row.problem), "there are none")
        raise InvalidRequest(f"No example could be measured: {problem}", code="no_examples")
    return Measured(own, others[0] if others else None, results)
