"""What a run of churn came to, and what of it is amiss."""

from collections.abc import Sequence
from typing import Any

from tests.chaos.serving.churn import DELETE_SECONDS, EVICT_SECONDS
from tests.chaos.serving.kills import Kill
from tests.chaos.serving.traffic import Request

OVERHEAD_SHARE = 0.05
"""Of the disk budget: manifests, and what is being replaced."""
LEAST_SHARE = 0.4
"""Of the evictions and deletions for which there was time; replicas are down for some of it."""
SHOWN = 30


def judged(requests: Sequence[Request], kills: Sequence[Kill]) -> dict[str, Any]:
    """Every failure belongs to a kill that explains it, or to nothing."""
    failed = [request for request in requests if request.problem]
    stray = [each for each in failed if not any(kill.explains(each) for kill in kills)]
    for each in stray[:SHOWN]:
        print(f"stray: {each.model} {each.problem}, {_since(each, kills)}", flush=True)
    return {
        "requests": len(requests),
        "wrong_answers": sum(each.wrong for each in failed),
        "failures_of_kills": len(failed) - len(stray),
        "stray_failures": len(stray),
        "kills": [kill.told(requests) for kill in kills],
    }


def _since(request: Request, kills: Sequence[Kill]) -> str:
    before = [kill for kill in kills if kill.at <= request.ended]
    if not before:
        return "before all kills"
    began, ended = (at - before[-1].at for at in (request.began, request.ended))
    return f"{began:.2f} to {ended:.2f} s after the end of {before[-1].victim.name}"


def problems_of(found: dict[str, Any], seconds: float, kills: int) -> list[str]:
    """`seconds` and `kills` are what was asked for."""
    counted = (
        "wrong_answers",
        "stray_failures",
        "engine_deaths_not_caused",
        "turns_not_given_back",
        "deleted_but_held",
    )
    problems = [f"{found[name]} {name}" for name in counted if found[name]]
    if found["disk_to_budget"] > 1 + OVERHEAD_SHARE:
        problems.append(f"{found['disk_to_budget']} of the disk budget")
    if len(found["kills"]) != kills:
        problems.append(f"{len(found['kills'])} of {kills} kills")
    for name, pace in (("evictions", EVICT_SECONDS), ("deletions", DELETE_SECONDS)):
        if found[name] < LEAST_SHARE * seconds / pace:
            problems.append(f"only {found[name]} {name}")
    problems += [f"{kill['victim']}: {kill['problem']}" for kill in found["kills"] if kill["problem"]]
    return problems
