"""The engine on an accelerator: `make bench-training-gpu`. The last line is JSON; a missed target ends it with 1.

Eight jobs in each step against the same engine with one job at a time, over random bases of 0.6B and 8B shape in
bfloat16, and the memory of a resident job against the formula that admits it. `--smoke` runs the same code on a CPU
over a base of no size, where the numbers say nothing.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from tests.benchmarks.training.steps import RANK, EngineJobs
from trainer.engine.base import RECOMPUTE_FROM, SHARED_BUDGETS, TOKEN_BUDGETS
from trainer.engine.engine import Engine
from trainer.engine.memory import slot_bytes

JOBS = 8
SECONDS_A_CASE = 10.0
LEAST_STEPS = 5
MEMORY_TOLERANCE = 1.05
ROUNDING = 8 << 20
"""Bytes that an allocator may take more than it was asked for, in all."""


@dataclass(frozen=True)
class Base:
    name: str
    make: Callable[[], PreTrainedModel]
    targets: dict[int, float]
    """Tokens of a job's step; how many times the speed of one job at a time mixed steps must have, 0 for any."""


@dataclass(frozen=True)
class Case:
    base: str
    tokens: int
    mixed_tokens_per_second: int
    one_at_a_time_tokens_per_second: int
    ratio: float
    target: float


@dataclass(frozen=True)
class Memory:
    base: str
    formula_bytes_a_job: int
    measured_bytes_a_job: int

    @property
    def met(self) -> bool:
        return self.measured_bytes_a_job * JOBS <= MEMORY_TOLERANCE * self.formula_bytes_a_job * JOBS + ROUNDING


def qwen() -> PreTrainedModel:
    heads: dict[str, Any] = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    size: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "vocab_size": 151936,
    }
    return Qwen3ForCausalLM(Qwen3Config(**size, **heads, tie_word_embeddings=True))


def llama() -> PreTrainedModel:
    size: dict[str, Any] = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "vocab_size": 128256,
    }
    return LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=32, num_key_value_heads=8))


def tiny() -> PreTrainedModel:
    size: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
    return LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=4, num_key_value_heads=2))


BASES = (
    Base("0.6B", qwen, {64: 3.0, 128: 3.0, 256: 3.0}),
    Base("8B", llama, {64: 2.0, 128: 2.0, 256: 0.0}),
)
SMOKE = (Base("none", tiny, {64: 0.0, 128: 0.0, 256: 0.0}),)


def engine_over(base: Base, device: torch.device) -> Engine:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = base.make()
    finally:
        torch.set_default_dtype(torch.float32)
    recompute = model.num_parameters() >= RECOMPUTE_FROM
    return Engine(model, torch.bfloat16, TOKEN_BUDGETS[device.type], SHARED_BUDGETS[device.type], recompute)


def measure(base: Base, engine: Engine, device: torch.device, tokens: int) -> Case:
    random = torch.Generator().manual_seed(1)
    data = [torch.randint(0, 512, (1, tokens), generator=random) for _ in range(JOBS)]
    jobs = EngineJobs(engine, data)
    seconds: list[list[float]] = [[], []]
    began = time.perf_counter()
    while len(seconds[0]) <= LEAST_STEPS or time.perf_counter() - began < SECONDS_A_CASE:
        for way, times in zip((jobs.mixed, jobs.one_at_a_time), seconds, strict=True):
            settle(device)
            started = time.perf_counter()
            way()
            settle(device)
            times.append(time.perf_counter() - started)
    jobs.release()
    # The first of each warms up.
    mixed, alone = (JOBS * tokens / statistics.median(times[1:]) for times in seconds)
    return Case(base.name, tokens, round(mixed), round(alone), round(mixed / alone, 2), base.targets[tokens])


def memory(base: Base, engine: Engine, device: torch.device) -> Memory | None:
    """Of a resident job; None where the device does not say what is taken of it."""
    if device.type != "cuda":
        return None
    settle(device)
    before = torch.cuda.memory_allocated(device)
    jobs = EngineJobs(engine, [torch.zeros(1, 8, dtype=torch.long) for _ in range(JOBS)])
    taken = torch.cuda.memory_allocated(device) - before
    jobs.release()
    return Memory(base.name, slot_bytes(engine.modules, RANK), taken // JOBS)


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures the training engine on an accelerator.")
    parser.add_argument("--smoke", action="store_true", help="on a CPU, to see that it runs")
    smoke = parser.parse_args().smoke
    if not smoke and not torch.cuda.is_available():
        print("This machine has no accelerator; nothing was measured. --smoke runs the code on a CPU.", file=sys.stderr)
        return 2
    device = torch.device("cpu" if smoke else "cuda")
    cases: list[Case] = []
    memories: list[Memory] = []
    for base in SMOKE if smoke else BASES:
        engine = engine_over(base, device)
        found = memory(base, engine, device)
        memories += [found] if found else []
        for tokens in base.targets:
            cases.append(measure(base, engine, device, tokens))
            print(f"{base.name}, {tokens} tokens: mixed {cases[-1].ratio} times one at a time", flush=True)
        del engine
        gc.collect()
    met = all(case.ratio >= case.target for case in cases) and all(found.met for found in memories)
    name = "cpu" if smoke else torch.cuda.get_device_name(device)
    told = {"cases": [asdict(case) for case in cases], "memory": [asdict(found) for found in memories]}
    print(json.dumps({"device": name, "jobs": JOBS, "met": met, **told}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
