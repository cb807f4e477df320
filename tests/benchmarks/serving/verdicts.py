"""Each figure of the benchmark beside what is asked of it."""

from typing import Any

from tests.benchmarks.serving.sections import Figures

RATIO = 0.95
ADDED_MS = 5.0
COLD_EXTRA_MS = 40.0
JOB_TO_TOKEN_MS = 1000.0
WAIT_MS = 50.0
APART = 0.1


def judged(found: Figures) -> dict[str, Figures]:
    """By name: the value, what is asked (nothing where it is only reported), and whether it is met."""
    figures: dict[str, Figures] = {}
    for section in found:
        figures |= _OF[section](found[section])
    return figures


def _least(value: float, asked: float) -> Figures:
    return {"value": value, "asked": f">= {asked:g}", "met": value >= asked}


def _most(value: float, asked: float) -> Figures:
    return {"value": value, "asked": f"<= {asked:g}", "met": value <= asked}


def _reported(value: Any) -> Figures:
    return {"value": value, "asked": None, "met": None}


def _path(path: Figures) -> dict[str, Figures]:
    figures = {"path.different_texts": _most(path["texts"]["different"], 0)}
    for name in ("at_once_1", "at_once_8"):
        figures[f"path.{name}.tokens_per_second_ratio"] = _least(path[name]["ratio"], RATIO)
        figures[f"path.{name}.added_first_token_ms"] = _most(path[name]["added_first_token_ms"], ADDED_MS)
        figures[f"path.{name}.of_the_gateway"] = _reported(path[name]["of_the_gateway"])
    return figures


def _adapters(runs: list[Figures]) -> dict[str, Figures]:
    figures = {"adapters.wrong_answers": _most(sum(run["wrong_answers"] for run in runs), 0)}
    for run in runs:
        name = f"adapters.{run['adapters']}.{run['popularity']}"
        figures[f"{name}.tokens_per_second_to_one"] = _reported(run["to_one_adapter"])
        figures[f"{name}.first_token_ms"] = _reported(run["first_token_ms"])
    return figures


def _cold(cold: Figures) -> dict[str, Figures]:
    return {"cold.extra_ms": _most(cold["extra_ms"], COLD_EXTRA_MS)}


def _cold_large(cold: Figures) -> dict[str, Figures]:
    names = ("megabytes", "bytes_alone_ms", "fetch_ms", "into_engine_ms")
    beside = {f"cold_large.{name}": _reported(cold[name]) for name in names}
    return {"cold_large.extra_ms": _most(cold["extra_ms"], COLD_EXTRA_MS), **beside}


def _fresh(fresh: Figures) -> dict[str, Figures]:
    return {"fresh.job_to_token_p95_ms": _most(fresh["p95_ms"], JOB_TO_TOKEN_MS)}


def _newcomer(newcomer: Figures) -> dict[str, Figures]:
    flood = newcomer["flood"]
    return {
        "fairness.newcomer_told_wait_p99_ms": _most(newcomer["told_wait_p99_ms"], WAIT_MS),
        "fairness.newcomer_seen_wait_p99_ms": _most(newcomer["seen_wait_p99_ms"], WAIT_MS),
        "fairness.newcomer_failed": _most(newcomer["failed"], 0),
        "fairness.flood_refused": _least(flood["refused"].get("503", 0), 1),
        "fairness.flood_refused_without_retry_after": _most(flood["refused_without_retry_after"], 0),
        "fairness.flood_wrong_answers": _most(flood["wrong_answers"], 0),
    }


def _alike(alike: Figures) -> dict[str, Figures]:
    floods = alike["floods"]
    return {
        "fairness.alike_tokens_apart": _most(alike["apart"], APART),
        "fairness.alike_wrong_answers": _most(sum(flood["wrong_answers"] for flood in floods), 0),
        "fairness.alike_refused": _most(sum(sum(flood["refused"].values()) for flood in floods), 0),
    }


_OF = {
    "path": _path,
    "adapters": _adapters,
    "cold": _cold,
    "fresh": _fresh,
    "newcomer": _newcomer,
    "alike": _alike,
    "cold_large": _cold_large,
}
