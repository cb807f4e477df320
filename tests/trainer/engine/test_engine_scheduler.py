"""Who takes part in a step: equal tokens for tenants, nobody starved, everybody where there is room."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from trainer.engine.scheduler import Scheduler

BUDGET, LARGEST = 512, 1024


@dataclass
class Job:
    job_id: str
    tenant: str
    cost: int


def served(jobs: list[Job], steps: int) -> tuple[Counter[str], Counter[str], int]:
    """Tokens of each tenant, steps of each job, and the longest any job waited in steps."""
    scheduler: Scheduler[Job] = Scheduler(BUDGET)
    tokens, turns, last, longest = Counter[str](), Counter[str](), {job.job_id: 0 for job in jobs}, 0
    for step in range(1, steps + 1):
        chosen = scheduler.choose(jobs)
        assert len({job.job_id for job in chosen}) == len(chosen) > 0
        assert len(chosen) == 1 or sum(job.cost for job in chosen) <= BUDGET
        for job in chosen:
            tokens[job.tenant] += job.cost
            turns[job.job_id] += 1
            longest, last[job.job_id] = max(longest, step - last[job.job_id]), step
    return tokens, turns, longest


def test_all_take_part_where_all_fit() -> None:
    jobs = [Job(f"j{number}", f"t{number % 3}", 64) for number in range(8)]
    _, turns, _ = served(jobs, 10)
    assert set(turns.values()) == {10}


def test_tenants_get_equal_tokens_however_many_jobs_they_have() -> None:
    jobs = [Job(f"a{number}", "a", 128) for number in range(12)] + [Job(f"b{number}", "b", 128) for number in range(3)]
    tokens, turns, _ = served(jobs, 600)
    assert tokens["a"] == pytest.approx(tokens["b"], rel=0.05)
    assert max(turns[f"a{number}"] for number in range(12)) - min(turns[f"a{number}"] for number in range(12)) <= 1


def test_large_pieces_do_not_take_more_than_small_ones() -> None:
    jobs = [Job("large", "a", 500), *(Job(f"s{number}", "b", 125) for number in range(8))]
    tokens, _, longest = served(jobs, 600)
    assert tokens["a"] == pytest.approx(tokens["b"], rel=0.05)
    assert longest <= 5


@pytest.mark.parametrize("seed", range(20))
def test_nobody_starves(seed: int) -> None:
    choice = random.Random(seed)
    jobs = [
        Job(f"j{number}", f"t{choice.randrange(4)}", choice.choice((8, 40, 200, 512, LARGEST)))
        for number in range(choice.randrange(2, 20))
    ]
    _, turns, longest = served(jobs, 800)
    assert len(turns) == len(jobs)
    # A turn is worth the largest piece, taken in steps that are at least half full; four tenants, then a tenant's jobs.
    assert longest <= len(jobs) * 4 * (2 * LARGEST / BUDGET + 1)


def test_a_job_that_comes_late_is_served_at_once_and_the_gone_are_forgotten() -> None:
    scheduler: Scheduler[Job] = Scheduler(BUDGET)
    jobs = [Job(f"a{number}", "a", 200) for number in range(6)]
    for _ in range(50):
        scheduler.choose(jobs)
    late = Job("b", "b", 200)
    assert any(late in scheduler.choose([*jobs, late]) for _ in range(2))
    assert scheduler.choose([late]) == [late]
    assert list(scheduler._deficits) == ["b"]
    assert scheduler.choose([]) == []
