"""`make bench-training`: everything that is claimed of the training engine's speed, in one run. The last line is JSON.

Ends with 1 where a target is missed. Say something of it on an idle machine only.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers.utils import logging

from tests.benchmarks.training import small_jobs
from tests.benchmarks.training.base import write_base
from tests.benchmarks.training.platform import running
from tests.benchmarks.training.small_jobs import FIRST_STEP_SECONDS, PEFT_PART, TRL_PART, Weft
from tests.benchmarks.training.steps import measure_all

PARTS = ("steps", "small-jobs")


async def through_weft(base: Path, root: Path) -> dict[str, Any]:
    async with running(base, root / "data") as platform:
        weft = await asyncio.to_thread(Weft, platform)
        mixed, loss, settings = await weft.trained(small_jobs.JOBS)
        one_at_a_time, _, _ = await weft.trained(1)
        first_steps = await weft.first_steps()
    small_jobs.write_jobs(base, settings, root / "jobs.json")
    return {
        "settings": settings.model_dump(include={"batch_size", "n_epochs", "lora_rank", "learning_rate"}),
        "mixed_seconds": mixed,
        "one_at_a_time_seconds": one_at_a_time,
        "claim_to_first_step_seconds": first_steps,
        "last_epoch_loss": loss,
    }


def small_jobs_every_way(root: Path) -> dict[str, Any]:
    base = write_base(root / "base")
    found = asyncio.run(through_weft(base, root))
    peft = small_jobs.run_peft(base, root / "jobs.json", root / "peft")
    first, saved = small_jobs.run_trl(base, root / "jobs.json", root / "trl")
    mixed, one_at_a_time = found["mixed_seconds"], found["one_at_a_time_seconds"]
    told = found | {
        "warm_peft_seconds": peft["seconds"],
        "warm_peft_last_epoch_loss": peft["last_epoch_loss"],
        "cold_trl_seconds": sum(saved),
        "cold_trl_start_to_first_step_seconds": statistics.median(first),
        "mixed_to_warm_peft": mixed / peft["seconds"],
        "mixed_to_cold_trl": mixed / sum(saved),
        "gain_of_warm_base": sum(saved) / one_at_a_time,
        "gain_of_mixing": one_at_a_time / mixed,
    }
    met = (
        told["mixed_to_warm_peft"] <= PEFT_PART
        and told["mixed_to_cold_trl"] <= TRL_PART
        and max(found["claim_to_first_step_seconds"].values()) <= FIRST_STEP_SECONDS
    )
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in told.items()} | {"met": met}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures the training engine against PEFT and TRL.")
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    only = parser.parse_args().only
    # The stack listens on loopback; a proxy meant for the outside must not be asked.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    result: dict[str, Any] = {"threads": 1}
    met: list[bool] = []
    if only != "small-jobs":
        speeds = measure_all()
        result["steps"] = [asdict(speed) for speed in speeds]
        met += [speed.met for speed in speeds]
    if only != "steps":
        with tempfile.TemporaryDirectory(prefix="weft-bench-", ignore_cleanup_errors=True) as root:
            result["small_jobs"] = small_jobs_every_way(Path(root))
        met.append(result["small_jobs"]["met"])
    print(json.dumps(result | {"met": all(met)}))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
