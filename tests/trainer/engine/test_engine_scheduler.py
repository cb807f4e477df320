"""Who takes part in a step: equal tokens for tenants, nobody starved, everybody where there is room."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest

from trainer.engine.scheduler import LEAST_PART, Scheduler

BUDGET, LARGEST = 512, 1024


@dataclass
class Job:
    job_id: str
    tenant: str
    cost: int


@dataclass
class Served:
    tokens: Counter[str]
    """Of each tenant."""
    turns: Counter[str]
    """Of each job."""
    longest: int
    """Steps that any job waited."""


def served(jobs: Sequence[Job], steps: int) -> Served:
    scheduler: Scheduler[Job] = Scheduler(BUDGET)
    last, result = {job.job_id: 0 for job in jobs}, Served(Counter(), Counter(), 0)
    for step in range(1, steps + 1):
        chosen = scheduler.choose(jobs)
        assert len({job.job_id for job in chosen}) == len(chosen) > 0
        assert len(chosen) == 1 or sum(job.cost for job in chosen) <= BUDGET
        for job in chosen:
            result.tokens[job.tenant] += job.cost
            result.turns[job.job_id] += 1
            result.longest, last[job.job_id] = max(result.longest, step - last[job.job_id]), step
    return result


def many(tenant: str, count: int, cost: int) -> list[Job]:
    return [Job(f"{tenant}{number}", tenant, cost) for number in range(count)]


def test_all_take_part_where_all_fit() -> None:
    jobs = [Job(f"j{number}", f"t{number % 3}", 64) for number in range(8)]
    assert set(served(jobs, 10).turns.values()) == {10}


def test_tenants_get_equal_tokens_however_many_jobs_they_have() -> None:
    found = served([*many("a", 12, 128), *many("b", 3, 128)], 600)
    assert found.tokens["a"] == pytest.approx(found.tokens["b"], rel=0.05)
    turns = [found.turns[f"a{number}"] for number in range(12)]
    assert max(turns) - min(turns) <= 1


@pytest.mark.parametrize(("theirs", "own"), [(256, 256), (300, 256), (256, 4096), (4096, 4096), (4096, 64)])
def test_one_job_gets_the_tokens_of_another_tenants_fifty(theirs: int, own: int) -> None:
    """Also where its pieces are small and theirs fill the budget: it goes on while they wait for their turn."""
    found = served([*many("a", 50, theirs), *many("b", 1, own)], 4000)
    assert found.tokens["a"] == pytest.approx(found.tokens["b"], rel=0.05)
    assert found.longest <= 50 * 2 * (LEAST_PART * max(theirs, own) // BUDGET + 1)


@pytest.mark.parametrize("cost", [16, 64, 200])
def test_one_job_that_cannot_use_half_a_step_takes_part_in_every_one(cost: int) -> None:
    """Its tokens are fewer, but no other way of sharing would have given it more than all steps."""
    found = served([*many("a", 50, cost), *many("b", 1, cost)], 500)
    assert found.turns["b0"] == 500
    assert found.tokens["a"] + found.tokens["b"] >= 500 * (BUDGET - cost)


def test_large_pieces_do_not_take_more_than_small_ones() -> None:
    found = served([Job("large", "a", 500), *many("b", 8, 125), *many("c", 8, 125)], 600)
    assert found.tokens["a"] == pytest.approx(found.tokens["b"], rel=0.05)
    assert found.tokens["a"] == pytest.approx(found.tokens["c"], rel=0.05)
    assert found.longest <= 10


def test_work_that_fills_the_budget_has_steps_to_itself_and_small_jobs_go_on_between_them() -> None:
    scheduler: Scheduler[Job] = Scheduler(BUDGET)
    large, small = Job("large", "a", 8 * BUDGET), many("b", 4, 100)
    steps = [scheduler.choose([large, *small]) for _ in range(200)]
    assert all(step == [large] or sorted(job.job_id for job in step) == ["b0", "b1", "b2", "b3"] for step in steps)
    alone = [number for number, step in enumerate(steps) if step == [large]]
    assert {after - before for before, after in pairwise(alone)} <= {11, 12}


def test_a_tenants_large_job_is_not_starved_by_its_own_small_one() -> None:
    found = served([Job("s", "a", 200), Job("l", "a", 4096), Job("b", "b", 200)], 3000)
    assert found.turns["l"] > 100
    assert found.turns["s"] > 2000 < found.turns["b"]


@pytest.mark.parametrize("seed", range(20))
def test_nobody_starves(seed: int) -> None:
    choice = random.Random(seed)
    jobs = [
        Job(f"j{number}", f"t{choice.randrange(4)}", choice.choice((8, 40, 200, 512, LARGEST)))
        for number in range(choice.randrange(2, 20))
    ]
    found = served(jobs, 800)
    assert len(found.turns) == len(jobs)
    # Between two turns everybody else begins as many steps as make up for the largest piece, small ones a few more.
    assert found.longest <= len(jobs) * (LEAST_PART * LARGEST // BUDGET + 1)


def test_pieces_that_change_their_size_never_leave_a_debt_that_starves_another() -> None:
    """A validation is one large piece after many small ones."""
    scheduler: Scheduler[Job] = Scheduler(BUDGET)
    changing, steady = Job("c", "a", 8), many("b", 20, 100)
    for _ in range(2000):
        scheduler.choose([changing, *steady])
    changing.cost = 4 * BUDGET
    assert [changing] in [scheduler.choose([changing, *steady]) for _ in range(10)]
    seen = [scheduler.choose([changing, *steady]) for _ in range(20)]
    assert sum(step == [changing] for step in seen) <= 7


def test_a_job_that_comes_late_is_served_at_once_and_the_gone_are_forgotten() -> None:
    scheduler: Scheduler[Job] = Scheduler(BUDGET)
    jobs = many("a", 6, 200)
    for _ in range(50):
        scheduler.choose(jobs)
    late = Job("b", "b", 200)
    assert any(late in scheduler.choose([*jobs, late]) for _ in range(2))
    assert scheduler.choose([late]) == [late]
    assert list(scheduler._jobs) == ["b"]
    assert scheduler.choose([]) == []
    assert scheduler._jobs == {}
