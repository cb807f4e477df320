"""Findings that are kept, by content: the same bytes are not looked through twice for one project."""

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from service.contracts.ids import ProjectId
from service.files.inspection import RULES, Findings
from service.files.models import ReportRow


async def recall(
    session: AsyncSession, sha256: str, purpose: str, compared: str = "", tokenizer: str = ""
) -> Findings | None:
    query = select(ReportRow.report).where(
        ReportRow.sha256 == sha256,
        ReportRow.purpose == purpose,
        ReportRow.compared_sha256 == compared,
        ReportRow.tokenizer == tokenizer,
        ReportRow.rules == RULES,
    )
    report = await session.scalar(query)
    return None if report is None else Findings.model_validate(report)


async def keep(
    session: AsyncSession,
    project: ProjectId,
    sha256: str,
    purpose: str,
    findings: Findings,
    compared: str = "",
    tokenizer: str = "",
) -> None:
    row = insert(ReportRow).values(
        project_id=project,
        sha256=sha256,
        purpose=purpose,
        compared_sha256=compared,
        tokenizer=tokenizer,
        rules=RULES,
        report=findings.model_dump(mode="json"),
    )
    await session.execute(row.on_conflict_do_nothing())
