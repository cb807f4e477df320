"""Tokens a second of the training engine. The same jobs three ways over the same frozen base, on one thread.

All of them in each step of the engine, one job at a time through the engine, and one job at a time through PEFT and
torch alone. Clipping and optimizer are included. Seconds are the thread's own, which on an idle machine are the
clock's, and on a busy one leave out what others got; caches are still shared, so the three take turns, and medians
are told. Where steps are short a turn is several of them: each way has weights of its own, so that a turn's first step
finds the caches full of the others', which no trainer's step does.
"""

import copy
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from tests.benchmarks.training.base import VOCABULARY, base_model
from trainer.engine.adapter import Adapter, AdapterSettings, Measured, Work
from trainer.engine.base import SHARED_BUDGETS, TOKEN_BUDGETS
from trainer.engine.engine import Engine
from trainer.engine.optimizer import AdamParams
from trainer.engine.plan import Row

CASES = {(8, 1, 16): 3.0, (8, 1, 32): 2.0, (8, 1, 64): 1.5, (32, 1, 8): 4.5, (8, 2, 128): 0.97}
"""Jobs, rows a job, tokens a row; and how many times PEFT's speed mixed steps must have."""

RANK, ALPHA = 8, 16
SECONDS_A_CASE = 20.0
LEAST_TURNS = 5
TOKENS_A_TURN = 640
COMPARED_STEPS = 20
TOLERANCE = 2e-6


@dataclass(frozen=True)
class Speed:
    jobs: int
    rows: int
    tokens: int
    steps_a_turn: int
    mixed_tokens_per_second: int
    one_at_a_time_tokens_per_second: int
    peft_tokens_per_second: int
    mixed_to_peft: float
    mixed_to_one_at_a_time: float
    target: float
    largest_loss_difference: float

    @property
    def met(self) -> bool:
        return self.mixed_to_peft >= self.target and self.largest_loss_difference <= TOLERANCE


def rate(job: int) -> float:
    return 1e-4 * (job % 8 + 1)


def engine() -> Engine:
    cpu = TOKEN_BUDGETS["cpu"], SHARED_BUDGETS["cpu"]
    return Engine(base_model(), torch.float32, *cpu, recompute=False)


class EngineJobs:
    """All jobs on one engine."""

    def __init__(self, engine: Engine, data: list[torch.Tensor]) -> None:
        self._engine = engine
        self._jobs = [self._job(number, ids) for number, ids in enumerate(data)]

    def _job(self, number: int, ids: torch.Tensor) -> tuple[Work, AdamParams]:
        adapter: Adapter = self._engine.create_adapter(AdapterSettings(RANK, ALPHA, "all-linear", seed=number))
        rows = [Row(row.numpy(), np.ones(len(row), dtype=np.float32)) for row in ids]
        params = AdamParams(rate(number), weight_decay=0.01, max_grad_norm=1.0)
        return Work(adapter, rows, float(sum(len(row) - 1 for row in ids))), params

    def mixed(self) -> list[float]:
        return self._step(self._jobs)

    def one_at_a_time(self) -> list[float]:
        return [loss for job in self._jobs for loss in self._step([job])]

    def release(self) -> None:
        for work, _ in self._jobs:
            self._engine.release(work.adapter)

    def weights(self, job: int) -> dict[str, torch.Tensor]:
        return self._engine.save(self._jobs[job][0].adapter)[0]

    def _step(self, jobs: list[tuple[Work, AdamParams]]) -> list[float]:
        losses = []
        for (work, _), outcome in zip(jobs, self._engine.forward_backward([work for work, _ in jobs]), strict=True):
            assert isinstance(outcome, Measured)
            losses.append(outcome.loss / work.normaliser)
        self._engine.optim_step([(work.adapter, params) for work, params in jobs])
        return losses


class PeftJobs:
    """Each job a PEFT model and torch's AdamW, started from the engine's weights."""

    def __init__(self, data: list[torch.Tensor], like: EngineJobs) -> None:
        self._data = data
        shared = base_model()
        self._models: list[torch.nn.Module] = []
        self._optimizers: list[torch.optim.Optimizer] = []
        for job in range(len(data)):
            # The frozen weights are shared here too: copies would only cost PEFT time in the cache.
            base = copy.deepcopy(shared, {id(weight): weight for weight in shared.parameters()})
            model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"))
            for name, weight in like.weights(job).items():
                kind = name[-1]
                model.get_parameter(f"base_model.model.{name[:-2]}.lora_{kind}.default.weight").data.copy_(weight.T)
            trained = [weight for weight in model.parameters() if weight.requires_grad]
            self._models.append(model)
            self._optimizers.append(torch.optim.AdamW(trained, lr=rate(job), weight_decay=0.01))

    def in_sequence(self) -> list[float]:
        return [self._step(job) for job in range(len(self._data))]

    def _step(self, job: int) -> float:
        ids, optimizer = self._data[job], self._optimizers[job]
        logits = self._models[job](input_ids=ids, use_cache=False).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()


def timed(way: Callable[[], list[float]], steps: int) -> tuple[float, list[float]]:
    """Seconds a step, and the losses of every one."""
    started = time.process_time()
    losses = [loss for _ in range(steps) for loss in way()]
    return (time.process_time() - started) / steps, losses


def measure(jobs: int, rows: int, tokens: int, target: float) -> Speed:
    random = torch.Generator().manual_seed(1)
    data = [torch.randint(0, VOCABULARY, (rows, tokens), generator=random) for _ in range(jobs)]
    together, apart = EngineJobs(engine(), data), EngineJobs(engine(), data)
    ways = [together.mixed, apart.one_at_a_time, PeftJobs(data, together).in_sequence]
    steps = max(1, TOKENS_A_TURN // (jobs * rows * tokens))
    seconds: list[list[float]] = [[], [], []]
    difference, started = 0.0, time.perf_counter()
    while len(seconds[0]) <= LEAST_TURNS or time.perf_counter() - started < SECONDS_A_CASE:
        took = [timed(way, steps) for way in ways]
        for times, (one, _) in zip(seconds, took, strict=True):
            times.append(one)
        if len(seconds[0]) * steps <= COMPARED_STEPS:
            pairs = zip(took[0][1], took[2][1], strict=True)
            difference = max(difference, *(abs(ours - theirs) / theirs for ours, theirs in pairs))
    # The first turn of each also warms up.
    medians = [statistics.median(times[1:]) for times in seconds]
    mixed, alone, solo = (round(jobs * rows * tokens / median) for median in medians)
    to_peft, to_alone = round(medians[2] / medians[0], 2), round(medians[1] / medians[0], 2)
    return Speed(jobs, rows, tokens, steps, mixed, alone, solo, to_peft, to_alone, target, difference)


def measure_all() -> list[Speed]:
    speeds = []
    for (jobs, rows, tokens), target in CASES.items():
        speed = measure(jobs, rows, tokens, target)
        speeds.append(speed)
        print(f"{jobs} jobs x {rows}x{tokens} tokens: {speed.mixed_to_peft} times PEFT (target {target})", flush=True)
        gc.collect()
    return speeds
