"""`weftd up --replicas 2`: two replicas apart from each other, either of which may die while chat goes on."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.conftest import wait_until
from tests.e2e.stack import WEFTD, Stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

REPLICAS = ("replica", "replica-2")


@pytest.fixture(scope="module")
def pair() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="weft-pair-") as root:
        made = Stack(Path(root), "--replicas", "2")
        try:
            made.start()
            yield made
        finally:
            if made.process is not None and made.process.poll() is None:
                made.stop()


def ask(client: OpenAI) -> str | None:
    answer = client.chat.completions.create(
        model="weft-tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=4, temperature=0
    )
    return answer.choices[0].message.content


def started(stack: Stack, part: str) -> int:
    return stack.data.log(part).read_text().count("replica: starting vLLM")


def ready_since_last_start(stack: Stack, part: str) -> bool:
    log = stack.data.log(part).read_text()
    return log.rfind("replica: vLLM ready") > log.rfind("replica: starting vLLM")


def test_both_are_ready_apart_and_shown(pair: Stack) -> None:
    said = pair.output.read_text()
    for part in REPLICAS:
        assert f"{part:<10} ready after" in said
        assert ready_since_last_start(pair, part)
    ports = pair.data.remembered_ports()
    assert len({ports[name] for name in ("service", "objects", *REPLICAS)}) == 4
    assert (pair.data.root / "adapters-2" / "adapters").is_dir()
    command = [*WEFTD, "status", "--data", str(pair.data.root)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert {line.split()[0] for line in shown.splitlines()} > set(REPLICAS)


@pytest.mark.parametrize("victim", REPLICAS)
def test_chat_goes_on_while_either_is_dead_and_it_comes_back(pair: Stack, victim: str) -> None:
    client = OpenAI(base_url=pair.base_url, api_key=pair.project("pair"), max_retries=0, timeout=20)
    assert ask(client)
    before, starts = pair.pids(), started(pair, victim)
    os.kill(before[victim], signal.SIGKILL)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        assert ask(client)
    wait_until(lambda: pair.pids().get(victim) not in (None, before[victim]), what="it is started again")
    wait_until(lambda: started(pair, victim) > starts, what="it starts vLLM again")
    wait_until(lambda: ready_since_last_start(pair, victim), seconds=180, what="it is ready again")
    after = pair.pids()
    assert {name: pid for name, pid in after.items() if name != victim} == {
        name: pid for name, pid in before.items() if name != victim
    }


def test_nothing_is_left_of_either(pair: Stack) -> None:
    running = pair.running()
    pair.stop()
    assert [each for each in running if each.find() is not None] == []
