"""Every hostile adapter against a real replica: `make chaos-hostile`. The last line is JSON. Fails where one does harm.

One tenant asks for each adapter of tests/inference/hostile.py, and for each whose canary is another's, like for any
other model. It must be refused with a reason, and after each one a hundred greedy answers of another tenant, of the
base and of two adapters, must be what they were.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.contracts.replica import ReplicaOrders
from tests.inference.adapters import Adapter
from tests.inference.conftest import ServiceAndStorage, serving
from tests.inference.hostile import HOSTILE
from tests.inference.neighbours import Neighbours, refusal
from tests.inference.running import running_replica
from tests.inference.unlike import unlike

LEAST = 30
"""Kinds of hostile adapters; fewer prove too little."""
UNLIKE = "predicts other tokens than where it was trained"


def all_of_them(base: Path, folder: Path) -> Iterator[tuple[str, Adapter, str]]:
    """Kind, adapter, and a word of the reason."""
    for kind, (make, reason) in HOSTILE.items():
        yield kind, make(), reason
    for kind, adapter in unlike(base, folder).items():
        yield kind, adapter, UNLIKE


async def attacked(root: Path, answers: int) -> dict[str, Any]:
    harmless = ServiceAndStorage(orders=ReplicaOrders(heartbeat_seconds=0.5))
    async with serving(harmless) as service, running_replica(service, root) as replica:
        await replica.until(lambda: bool(service.heartbeats) and replica.now.state == "ready", "ready")
        neighbours = Neighbours(replica, answers)
        before = await neighbours.answers()
        found: Counter[str] = Counter()
        codes: Counter[str] = Counter()
        for kind, adapter, reason in all_of_them(replica.base, root / "unlike"):
            code, told = await refusal(replica, service.publish(adapter))
            now = await neighbours.answers()
            changed = sum(one != other for one, other in zip(before, now, strict=True))
            refused = bool(code) and reason in told
            found.update(hostile=1, refused=refused, answers=len(now), changed=changed)
            codes[code] += 1
            if changed or not refused:
                print(f"missed: {kind}: {code} {told}; {changed} answers changed", flush=True)
        deaths = sum(beat.state == "down" for beat in service.heartbeats)
        return {**found, "codes": codes, "distinct_answers": len(set(before)), "engine_deaths": deaths}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=100, help="of other tenants after each hostile adapter")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="weft-hostile-") as root:
        found = asyncio.run(attacked(Path(root), options.answers))
    met = LEAST <= found["refused"] == found["hostile"] and not found["changed"] and not found["engine_deaths"]
    print(json.dumps({"met": met, "seconds": round(time.monotonic() - began, 1), **found}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
