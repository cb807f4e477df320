"""What answers say about flips: which version gave each, whether that one could be meant, and how late the last came.

An alias goes round its versions, so that an answer of any but the last few flips can only be an old one.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.serving.load import percentile

LATE_SECONDS = 1.0


@dataclass(frozen=True)
class Flip:
    """From `acked` on, requests that begin are for `version`. All times are of one clock."""

    version: int
    sent: float
    acked: float


@dataclass(frozen=True)
class Asked:
    """One request. `version` is whose answer it was, None where it was not exactly one's; `problem` is then given."""

    began: float
    ended: float
    gateway: int
    version: int | None
    problem: str = ""


def lateness(flips: Sequence[Flip], asked: Sequence[Asked]) -> tuple[list[float], int]:
    """For each flip but the first, how long after its acknowledgement an old answer was last begun, 0 for never.

    And how many answers came of a version before it was asked to be.
    """
    late, early = [0.0] * len(flips), 0
    for request in asked:
        if request.version is None:
            continue
        possible = [n for n, f in enumerate(flips) if f.version == request.version and f.sent <= request.ended]
        if not possible:
            early += 1
            continue
        # The next flip is the one that should have ended it.
        ending = possible[-1] + 1
        if ending < len(flips):
            late[ending] = max(late[ending], request.began - flips[ending].acked)
    return late[1:], early


def told(flips: Sequence[Flip], asked: Sequence[Asked], seconds: float) -> dict[str, Any]:
    late, early = lateness(flips, asked)
    flipping = [(flip.acked - flip.sent) * 1000 for flip in flips[1:]]
    failed = [request for request in asked if request.version is None]
    for reason, count in Counter(request.problem for request in failed).most_common(10):
        print(f"failed {count} times: {reason}", flush=True)
    return {
        "flips": len(late),
        "requests": len(asked),
        "requests_per_second": round(len(asked) / seconds, 1),
        "by_gateway": sorted(Counter(request.gateway for request in asked).items()),
        "by_version": sorted(Counter(each.version for each in asked if each.version is not None).items()),
        "failed_or_mixed": len(failed),
        "early": early,
        "flips_with_old_answers": sum(wait > 0 for wait in late),
        "old_ms_p50": round(percentile(late, 0.5) * 1000, 1),
        "old_ms_p99": round(percentile(late, 0.99) * 1000, 1),
        "old_ms_max": round(max(late) * 1000, 1),
        "flip_ms_p50": round(percentile(flipping, 0.5), 1),
        "flip_ms_p99": round(percentile(flipping, 0.99), 1),
    }


def problems_of(found: dict[str, Any]) -> list[str]:
    problems = [f"{found[name]} {name}" for name in ("failed_or_mixed", "early", "not_booked") if found[name]]
    if found["old_ms_p99"] > LATE_SECONDS * 1000:
        problems.append(f"old answers were begun for {found['old_ms_p99']} ms at p99")
    return problems
