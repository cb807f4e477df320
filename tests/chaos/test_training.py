"""A few rounds of `make chaos-training`, in a process of its own because it forks."""

import json
import subprocess
import sys

import pytest

ROUNDS = 6


@pytest.mark.timeout(240)
def test_no_healthy_job_notices_what_happens_around_it() -> None:
    command = [sys.executable, "-m", "tests.chaos.training", "--rounds", str(ROUNDS), "--seed", "1000"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=220, check=False)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["broken"] is None
    assert done.returncode == 0
    assert told["rounds"] == ROUNDS
    for mishap in ("kills", "evictions", "sick jobs", "waits for memory"):
        assert told[mishap] > 0
    assert told["healthy jobs"] == ROUNDS * 7
