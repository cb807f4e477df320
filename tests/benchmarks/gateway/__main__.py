"""The gateway's own cost, in one run over a fixed upstream: `make bench-gateway`. The last line is JSON.

Keys, limits and metering are on. Processor time is that of the gateway's process alone, so what else a machine does
counts little; its speed counts, so a naked aiohttp proxy and, where it is installed, LiteLLM's are measured in turns
with it. Fails below the targets.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from tests.benchmarks.gateway import systems
from tests.benchmarks.gateway.load import Server, saturated, steady

CLIENTS = 32
STREAMS = 100
HALF = 0.5
AT_LEAST = {
    "requests_per_core": 2500.0,
    "events_per_core": 20_000.0,
    "requests_to_naked": 0.55,
    "requests_to_litellm": 20.0,
}
AT_MOST = {"added_p50_ms": 3.0, "added_p99_ms": 10.0}


@dataclass
class Found:
    """What one server did for a second of processor time, and how long its answers took, by round."""

    requests: list[float] = field(default_factory=list)
    events: list[float] = field(default_factory=list)
    latencies: list[list[float]] = field(default_factory=list)

    def quantile(self, percent: int) -> list[float]:
        """In milliseconds, by round."""
        return [statistics.quantiles(seconds, n=100)[percent - 1] * 1000 for seconds in self.latencies]


async def measured(folder: Path, options: argparse.Namespace) -> dict[str, Found]:
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(systems.upstream(folder))
        naked = await stack.enter_async_context(systems.naked(folder, behind))
        weft = await stack.enter_async_context(systems.weft(folder, behind))
        litellm = None if options.alone else await stack.enter_async_context(systems.litellm(folder, behind))
        servers = [server for server in (naked, weft, litellm) if server is not None]
        found = {server.name: Found() for server in (behind, *servers)}
        for number in range(options.rounds):
            for server in servers:
                await _costs(server, found[server.name], options.seconds)
                print(server.name, json.dumps(_shown(found[server.name])), flush=True)
            rate = found[weft.name].requests[-1] * HALF
            for server in (behind, weft):
                latencies = await steady(server, rate=rate, seconds=options.seconds, seed=number)
                found[server.name].latencies.append(latencies)
                print(server.name, json.dumps(_shown(found[server.name])), flush=True)
        print(f"memory of the service: {weft.rss() >> 20} MiB", flush=True)
        return found


async def _costs(server: Server, found: Found, seconds: float) -> None:
    whole = await saturated(server, stream=False, clients=CLIENTS, seconds=seconds)
    found.requests.append(whole.requests / whole.cpu)
    streamed = await saturated(server, stream=True, clients=STREAMS, seconds=seconds)
    found.events.append(streamed.events / streamed.cpu)


def _shown(found: Found) -> dict[str, Any]:
    """The latest round."""
    shown: dict[str, Any] = {}
    if found.requests:
        shown |= {"requests_per_core": round(found.requests[-1]), "events_per_core": round(found.events[-1])}
    if found.latencies:
        shown |= {f"p{percent}_ms": round(found.quantile(percent)[-1], 2) for percent in (50, 99)}
    return shown


def summed_up(found: dict[str, Found]) -> dict[str, dict[str, Any]]:
    """Each figure beside what is asked: the median of the rounds. What was compared was measured in the same round."""
    weft, upstream = found["weft"], found["upstream"]
    values = {"requests_per_core": weft.requests, "events_per_core": weft.events}
    for name in ("naked", "litellm"):
        if name in found:
            pairs = zip(weft.requests, found[name].requests, strict=True)
            values[f"requests_to_{name}"] = [mine / other for mine, other in pairs]
            pairs = zip(weft.events, found[name].events, strict=True)
            values[f"events_to_{name}"] = [mine / other for mine, other in pairs]
    for percent in (50, 99):
        pairs = zip(weft.quantile(percent), upstream.quantile(percent), strict=True)
        values[f"added_p{percent}_ms"] = [through - direct for through, direct in pairs]
    judged = {name: _judged(name, statistics.median(each)) for name, each in values.items()}
    others = {name: _absolute(found[name]) for name in ("naked", "litellm") if name in found}
    return judged | others | {"upstream": _quantiles(upstream), "weft": _absolute(weft) | _quantiles(weft)}


def _absolute(found: Found) -> dict[str, Any]:
    """What the ratios are of: medians of the rounds."""
    return {
        "requests_per_core": round(statistics.median(found.requests)),
        "events_per_core": round(statistics.median(found.events)),
    }


def _quantiles(found: Found) -> dict[str, Any]:
    return {f"p{percent}_ms": round(statistics.median(found.quantile(percent)), 3) for percent in (50, 99)}


def _judged(name: str, value: float) -> dict[str, Any]:
    judged: dict[str, Any] = {"value": round(value, 3)}
    if name in AT_LEAST:
        judged |= {"asked": f">= {AT_LEAST[name]:g}", "met": value >= AT_LEAST[name]}
    if name in AT_MOST:
        judged |= {"asked": f"<= {AT_MOST[name]:g}", "met": value <= AT_MOST[name]}
    return judged


def main() -> int:
    reader = argparse.ArgumentParser(prog="python -m tests.benchmarks.gateway", description=__doc__)
    reader.add_argument("--rounds", type=int, default=3)
    reader.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    reader.add_argument("--alone", action="store_true", help="without LiteLLM")
    options = reader.parse_args()
    # Not in a folder of pytest's: as root PostgreSQL runs as another user, which must get there.
    folder = Path(tempfile.mkdtemp(prefix="weft-bench-"))
    try:
        result = summed_up(uvloop.run(measured(folder, options)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if "litellm" not in result:
        result["litellm"] = {"value": "not measured" if options.alone else "not installed"}
    print(json.dumps(result))
    return 0 if all(each.get("met", True) for each in result.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
