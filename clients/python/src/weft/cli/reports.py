"""Reports on training files, from the service or made here; they look the same."""

from typing import TYPE_CHECKING

from weft.cli.commands import Session
from weft.cli.failures import FAILED
from weft.cli.output import details, plain, say, show_json, table

if TYPE_CHECKING:
    from weft.types import DatasetReport, FileValidation


def show_report(session: Session, report: "FileValidation | DatasetReport") -> int:
    """The exit status: FAILED where some lines cannot be used."""
    status = 0 if report.ok else FAILED
    if session.json:
        show_json({**plain(report), "warnings": report.warnings})
        return status
    about = "about " if report.tokens.estimated else ""
    fields: dict[str, object] = {
        "FORMAT": report.format,
        "LINES": report.lines,
        "VALID": report.valid,
        "TOKENS": f"{about}{report.tokens.total}, longest example {report.tokens.max}",
        "REPEATED": report.duplicates.examples,
    }
    if report.overlap is not None:
        fields["IN BOTH"] = report.overlap.examples
    if report.warnings:
        fields["WARNING"] = "; ".join(report.warnings)
    details(fields)
    if report.problems:
        rows = [(problem.line, problem.code, problem.message, problem.fix) for problem in report.problems]
        table(("LINE", "PROBLEM", "WHAT", "WHAT TO DO"), rows)
    hidden = sum(report.problem_counts.values()) - len(report.problems)
    if hidden > 0 or not report.complete:
        say(session, f"{hidden} more problems are not shown." if hidden > 0 else "The rest was not looked at.")
    return status
