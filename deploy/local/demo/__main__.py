"""The demo, from nothing to two tenants' different answers. Ends with 1 where the tiny base misses its targets."""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from deploy.local.admin import Admin
from deploy.local.demo import SETTINGS, background
from deploy.local.demo.show import Screen, curl_lines
from deploy.local.demo.tenant import Tenant, Trained, expected
from deploy.local.folder import DataFolder, StackError
from deploy.local.tiny_base.tasks import TASKS

EXAMPLES = 200
HELD_OUT = 60
SHOWN = 3
BASE_AT_MOST, OWN_AT_LEAST, OTHER_AT_MOST = 0.10, 0.90, 0.20


@dataclass(frozen=True)
class Score:
    base: float
    own: float
    other: float

    @property
    def meets_targets(self) -> bool:
        return self.base <= BASE_AT_MOST and self.own >= OWN_AT_LEAST and self.other <= OTHER_AT_MOST


def main() -> int:
    options = _options()
    # The stack listens on loopback; a proxy meant for the outside must not be asked.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    screen = Screen()
    data = DataFolder(options.data.resolve())
    try:
        return 0 if _demo(screen, data, options.port, options.base) else 1
    except (StackError, openai.APIError) as error:
        screen.say(f"\ndemo: {error}\nThe parts' own words are in {data.root / 'logs'}.")
        return 1


def _demo(screen: Screen, data: DataFolder, port: int, base: str | None) -> bool:
    """Whether the targets are met, or do not apply."""
    with screen.stage("Start the stack"):
        url = background.ensure(data, port, base, screen.say)
    with screen.stage("Make two projects and upload their examples"):
        admin = Admin.of(data)
        tenants = [Tenant(task, url, admin.create_key(task), EXAMPLES, HELD_OUT) for task in TASKS]
        files = [tenant.upload() for tenant in tenants]
        model = tenants[0].base_model()
    with screen.stage(f"Train both over {model}"):
        trained = _train(screen, tenants, files, model, SETTINGS if base is None else {})
    with screen.stage("Ask the same questions"):
        _show_answers(screen, tenants, trained, model)
    with screen.stage(f"Measure exact answers on {HELD_OUT} held-out examples a task"):
        scores = _measure(screen, tenants, trained, model)
    _report(screen, url, tenants, trained, scores)
    return base is not None or all(score.meets_targets for score in scores)


def _train(
    screen: Screen, tenants: list[Tenant], files: list[str], model: str, settings: dict[str, Any]
) -> list[Trained]:
    with screen.bars() as bars, ThreadPoolExecutor(len(tenants)) as threads:
        return list(threads.map(lambda tenant, file: tenant.train(file, model, settings, bars.update), tenants, files))


def _show_answers(screen: Screen, tenants: list[Tenant], trained: list[Trained], model: str) -> None:
    """The questions are the same for both tenants; what is expected is each tenant's own."""
    rows: list[list[str]] = []
    for lines in zip(*(tenant.held_out[:SHOWN] for tenant in tenants), strict=True):
        answers = [tenant.ask(made.model, line) for tenant, made, line in zip(tenants, trained, lines, strict=True)]
        question = lines[0]["messages"][0]["content"]
        rows.append([question, tenants[0].ask(model, lines[0]), *answers, "\n".join(expected(line) for line in lines)])
    columns = ["prompt", f"{model} (base)", *(tenant.name for tenant in tenants), "expected"]
    screen.table("One vLLM server, one base, two adapters", columns, rows)


def _measure(screen: Screen, tenants: list[Tenant], trained: list[Trained], model: str) -> list[Score]:
    """The other tenant's adapter answers only to the other tenant's key, which is given this one's questions."""
    scores: list[Score] = []
    with screen.bars() as bars:
        for own, other in ((0, 1), (1, 0)):
            tenant, lines = tenants[own], tenants[own].held_out
            done = 0

            def count(name: str = tenant.name, total: int = 3 * len(lines)) -> None:
                nonlocal done
                done += 1
                bars.update(name, done, total, "asked")

            scores.append(
                Score(
                    base=tenant.accuracy(model, lines, count),
                    own=tenant.accuracy(trained[own].model, lines, count),
                    other=tenants[other].accuracy(trained[other].model, lines, count),
                )
            )
    return scores


def _report(screen: Screen, url: str, tenants: list[Tenant], trained: list[Trained], scores: list[Score]) -> None:
    rows = [
        [tenant.name, f"{score.base:.0%}", f"{score.own:.0%}", f"{score.other:.0%}"]
        for tenant, score in zip(tenants, scores, strict=True)
    ]
    screen.table("Exact answers", ["task", "base", "own adapter", "the other's adapter"], rows)
    seconds = [[name, f"{value:.1f}"] for name, value in screen.seconds.items()]
    for tenant, made in zip(tenants, trained, strict=True):
        seconds.append([f"  {tenant.name}: job, from create to succeeded", f"{made.seconds:.1f}"])
        seconds.append([f"  {tenant.name}: last step to first token", f"{made.first_token_seconds:.1f}"])
    screen.table("Seconds", ["stage", "seconds"], seconds)
    keys = {tenant.name: tenant.key for tenant in tenants}
    models = {tenant.name: made.model for tenant, made in zip(tenants, trained, strict=True)}
    screen.say(f"\nThe stack goes on running at {url}. Stop it with: make down")
    for name, key in keys.items():
        screen.say(f"  key of {name}: {key}")
    screen.say("\nTry it:")
    for line in curl_lines(url, keys, models, tenants[0].held_out[0]["messages"][0]["content"]):
        screen.say(f"\n{line}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--base")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
