"""What a job's owner is told of its way through the shared steps: speed, waiting, and its part of the passes."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.trainer.engine.jobs import Clock, metrics, run, start, turn
from trainer.engine.adapter import Outcome, Work
from trainer.engine.engine import Engine
from trainer.engine.pace import Pace, StepPace
from trainer.engine.runner import JobRunner
from trainer.engine.scheduler import Scheduler
from trainer.engine.turns import step


def test_speed_and_waiting_are_counted_from_one_optimizer_step_to_the_next() -> None:
    clock = Clock()
    pace = Pace(clock)
    clock.now += 2
    pace.waited(0.5)
    pace.waited(0.25)
    pace.took_part(10, 40)
    pace.took_part(20, 20)
    assert pace.stepped(100) == StepPace(tokens_per_second=50, queue_wait_seconds=0.75, step_share=0.5)
    clock.now += 1
    pace.took_part(8, 8)
    assert pace.stepped(8) == StepPace(tokens_per_second=8, queue_wait_seconds=0, step_share=1)


def test_a_job_alone_has_the_steps_to_itself(engine: Engine, tmp_path: Path) -> None:
    command = start(tmp_path)
    clock = Clock()
    runner = JobRunner(engine, command, checkpoint_seconds=1e9, clock=clock)
    tokens = sum(len(row.input_ids) for row in runner._data.batch(0).rows)
    clock.now += 4
    turn(engine, runner)
    runner.flush()
    (told,) = metrics(runner.outbox)
    assert told["tokens_per_second"] == pytest.approx(tokens / 4, abs=0.1)
    assert (told["queue_wait_seconds"], told["step_share"]) == (0, 1)


def test_jobs_in_one_step_share_it_by_their_padded_tokens(engine: Engine, tmp_path: Path) -> None:
    runners = [
        JobRunner(engine, start(tmp_path, f"ftjob-{size}", batch_size=size), checkpoint_seconds=1e9) for size in (1, 3)
    ]
    step(engine, Scheduler(10**6), runners, lambda _, work: work())
    shares = []
    for runner in runners:
        runner.flush()
        (told,) = metrics(runner.outbox)
        assert told["queue_wait_seconds"] == 0
        shares.append(told["step_share"])
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert 0 < shares[0] < shares[1]


def test_whoever_is_not_chosen_waits_for_as_long_as_the_others_take(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, forward_backward = Clock(), engine.forward_backward

    def slow(works: Sequence[Work]) -> list[Outcome]:
        clock.now += 3
        return forward_backward(works)

    monkeypatch.setattr(engine, "forward_backward", slow)
    monkeypatch.setattr("trainer.engine.turns.time.monotonic", clock)
    runners = [JobRunner(engine, start(tmp_path, f"ftjob-{name}"), checkpoint_seconds=1e9) for name in "ab"]
    scheduler: Scheduler[JobRunner] = Scheduler(1)
    for _ in range(4):
        step(engine, scheduler, runners, lambda _, work: work())
    waits = []
    for runner in runners:
        runner.flush()
        waits.append([told["queue_wait_seconds"] for told in metrics(runner.outbox)])
        assert all(told["step_share"] == 1 for told in metrics(runner.outbox))
    assert sorted(waits) == [[0, 3], [3, 3]]


def test_the_rate_and_the_gradient_of_each_step_are_told(engine: Engine, tmp_path: Path) -> None:
    told = metrics(run(engine, start(tmp_path, warmup_ratio=0.25, lr_scheduler="constant", learning_rate=0.01)))
    assert [data["learning_rate"] for data in told] == pytest.approx([0.01 / 3, 0.02 / 3] + [0.01] * 10)
    assert all(data["grad_norm"] > 0 for data in told)
