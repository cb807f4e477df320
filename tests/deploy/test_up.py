"""`weftd` itself, as an operator runs it: what it says, what it leaves in its folder, how it ends and comes back."""

import os
import signal
import stat
import subprocess
import time

import httpx
import pytest
from openai import OpenAI

from deploy.local import folder
from deploy.local.tiny_base.tasks import examples
from tests.conftest import free_port, wait_until
from tests.e2e.stack import WEFTD, Stack
from tests.e2e.training import tune, wait_for_job

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

STOP_SECONDS = 15.0
PARTS = {"postgres", "objects", "service", "trainer", "replica"}
TOTAL_MIB, SERVICE_MIB, AGENT_MIB = 5 << 10, 250, 100


def weftd(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*WEFTD, *arguments, "--data", str(stack.data.root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def ask(stack: Stack, key: str, model: str = "weft-tiny") -> str | None:
    client = OpenAI(base_url=stack.base_url, api_key=key)
    question = "order 4821 from Mira Kato ships to Lund"
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=16, temperature=0
    )
    return answer.choices[0].message.content


def test_ready_means_that_a_chat_completion_succeeds(stack: Stack) -> None:
    said = stack.output.read_text()
    for part in PARTS:
        assert f"{part:<10} ready after" in said
    assert f"\nready {stack.url}\n" in said
    assert ask(stack, stack.project("up"))


def test_secrets_are_the_owners_alone(stack: Stack) -> None:
    for name in ("admin.key", "secrets.json"):
        assert stat.S_IMODE((stack.data.root / name).stat().st_mode) == 0o600
    for name in folder.PRIVATE_FOLDERS:
        assert stat.S_IMODE((stack.data.root / name).stat().st_mode) == 0o700


def test_no_secret_is_in_a_command_line_or_a_log(stack: Stack) -> None:
    secrets = stack.data.root / "secrets.json"
    values = [value for value in secrets.read_text().split('"')[3::4] if len(value) > 16]
    assert len(values) >= 8
    lines = [" ".join(process.cmdline()) for each in stack.running() if (process := each.find()) is not None]
    logs = [path.read_text(errors="replace") for path in (stack.data.root / "logs").iterdir()]
    for text in (*lines, *logs, stack.output.read_text()):
        assert not any(value in text for value in values)


def test_a_second_one_on_the_folder_says_so(stack: Stack) -> None:
    second = weftd(stack, "up", "--port", str(free_port()))
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert f"in use by process {stack.records().supervisor.pid}" in second.stderr


def test_a_taken_port_says_so(stack: Stack, tmp_path) -> None:
    command = [*WEFTD, "up", "--data", str(tmp_path / "other"), "--port", str(stack.port)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (refused.returncode, refused.stderr) == (
        1,
        f"weftd: port {stack.port} is in use; choose another with --port\n",
    )


def test_key_create_prints_a_key_that_works_and_makes_the_project_once(stack: Stack) -> None:
    first, second = (weftd(stack, "key", "create", "--project", "made by weftd").stdout for _ in range(2))
    assert first != second
    for key in (first, second):
        assert ask(stack, key.strip())
    projects = httpx.get(
        f"{stack.base_url}/organization/projects", headers={"Authorization": f"Bearer {stack.admin_key}"}
    ).json()["data"]
    assert [project["name"] for project in projects].count("made by weftd") == 1


def test_status_shows_every_part_and_its_memory(stack: Stack) -> None:
    shown = weftd(stack, "status")
    assert shown.returncode == 0
    resident = {words[0]: int(words[-1]) for words in map(str.split, shown.stdout.splitlines()[1:-1])}
    assert resident.keys() == PARTS | {"weftd"}
    assert sum(resident.values()) < TOTAL_MIB
    assert resident["service"] < SERVICE_MIB


def test_the_lease_holder_stays_small(stack: Stack) -> None:
    agent = stack.records().parts["trainer"].find()
    assert agent is not None
    assert agent.memory_info().rss >> 20 < AGENT_MIB


def test_a_killed_part_comes_back(stack: Stack) -> None:
    before = stack.pids()["objects"]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: stack.pids().get("objects", before) != before, what="the object store is started again")
    assert "objects was ended by SIGKILL; starting it again" in stack.output.read_text()
    client = OpenAI(base_url=stack.base_url, api_key=stack.project("up"))
    assert client.files.create(file=("a.jsonl", b"{}\n" * 3), purpose="batch").id


def test_stops_leaving_nothing_and_comes_back_with_everything(stack: Stack) -> None:
    client = OpenAI(base_url=stack.base_url, api_key=stack.project("up"))
    kept = client.files.create(file=("kept.jsonl", b'{"a": 1}\n'), purpose="batch").id
    job = wait_for_job(client, tune(client, examples("support-desk", 40, seed=1)).id)
    answer = ask(stack, stack.project("up"), str(job.fine_tuned_model))
    running = stack.running()
    assert stack.stop() < STOP_SECONDS
    assert [each for each in running if each.find() is not None] == []
    assert list(stack.data.root.rglob(".s.PGSQL*")) == []
    assert not stack.data.temporary.exists()
    assert weftd(stack, "status").returncode == 3
    assert weftd(stack, "down").returncode == 0
    nothing = weftd(stack, "key", "create", "--project", "up")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    stack.start()
    assert client.files.content(kept).read() == b'{"a": 1}\n'
    assert client.fine_tuning.jobs.retrieve(job.id) == job
    assert ask(stack, stack.project("up"), str(job.fine_tuned_model)) == answer != ask(stack, stack.project("up"))


def test_killed_without_a_word_it_takes_its_parts_along_and_starts_again(stack: Stack) -> None:
    running = stack.running()
    assert stack.process is not None
    stack.process.kill()
    stack.process.wait()
    deadline = time.monotonic() + STOP_SECONDS
    while left := [each for each in running if each.find() is not None]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.1)
    stack.start()
    assert ask(stack, stack.project("up"))
