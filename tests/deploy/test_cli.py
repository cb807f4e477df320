"""`weftd`'s arguments and exit statuses, where no stack runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local import cli
from tests.conftest import free_port


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"    {command}" in shown for command in ("up", "down", "status", "key", "examples"))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["up"],
        ["up", "--data", "x", "--port", "0"],
        ["up", "--data", "x", "--port", "no"],
        ["up", "--data", "x", "--replicas", "0"],
        ["key"],
        ["examples", "no-such-task"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert "usage: weftd" in capsys.readouterr().err


def test_where_nothing_runs_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--data", str(tmp_path / "none")]
    assert cli.main(["status", *folder]) == 3
    assert cli.main(["down", *folder]) == 0
    assert cli.main(["key", "create", *folder, "--project", "a"]) == 1
    said = capsys.readouterr()
    assert said.out.count(f"nothing runs on {tmp_path / 'none'}") == 2
    assert said.err == (
        f"weftd: nothing runs on {tmp_path / 'none'}; start it first: weftd up --data {tmp_path / 'none'}\n"
    )


def test_examples_are_training_lines_and_another_seed_has_others(capsys: pytest.CaptureFixture[str]) -> None:
    printed: list[list[str]] = []
    for seed in ("1", "1", "2"):
        assert cli.main(["examples", "support-desk", "--count", "20", "--seed", seed]) == 0
        printed.append(capsys.readouterr().out.splitlines())
    assert printed[0] == printed[1]
    assert not set(printed[0]) & set(printed[2])
    assert all([turn["role"] for turn in json.loads(line)["messages"]] == ["user", "assistant"] for line in printed[0])


def test_a_base_that_is_none_ends_up_before_anything_starts(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    # A process of its own: `up` ends whatever runs below it.
    command = [sys.executable, "-m", "deploy.local.cli", "up", "--data", str(tmp_path / "data")]
    command += ["--port", str(free_port()), "--base", str(absent)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr == f"weftd: there is no folder {absent}; --base takes a folder with a model or a hub id\n"
    assert ended.stdout == "base model starting\n"
