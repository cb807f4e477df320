"""How the command line begins and ends: quickly, and by exit statuses that scripts can use."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.clients.cli.conftest import Open, Shell
from tests.clients.cli.terminal import WEFT, environment
from tests.clients.conftest import examples
from tests.conftest import free_port
from weft.cli.app import weft

HEAVY = ("openai", "pydantic", "rich", "httpx2", "asyncio")
HELP_SECONDS = 0.15
GROUPS = ("adapters", "chat", "completion", "datasets", "files", "jobs", "keys", "models", "projects", "usage")


def processor_seconds(*argv: str) -> float:
    """The least of some runs: of processor time, so that what else runs here does not count."""
    times: list[float] = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(argv, env=environment(), check=True, capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_help_is_quick() -> None:
    assert processor_seconds(*WEFT, "--help") < HELP_SECONDS


def test_the_installed_command_helps_at_once() -> None:
    """By the clock. While the machine is busy it is tried again: the best is what the command itself takes."""
    script = Path(sys.executable).with_name("weft")
    until = time.monotonic() + 60
    while (taken := seconds(script, "--help")) > HELP_SECONDS:
        assert time.monotonic() < until, f"{taken:.3f} s"


def seconds(*argv: str | Path) -> float:
    began = time.monotonic()
    subprocess.run(argv, env=environment(), check=True, capture_output=True, timeout=60)
    return time.monotonic() - began


def commands(group: click.Group = weft, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command by the words that it is given with."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found, (*words, name))
        else:
            yield (*words, name), found


COMMANDS = dict(commands())


def test_every_command_explains_itself_and_takes_json(alone: Shell) -> None:
    for words, command in COMMANDS.items():
        said = alone.ok(*words, "--help").out
        assert said.startswith(f"Usage: weft {' '.join(words)} "), words
        assert "\n  --json " in said, words
        if len(words) > 1:
            # In the list of its group.
            assert not command.get_short_help_str(60).endswith("..."), words


@pytest.mark.parametrize("group", ["", "adapters", "chat", "jobs", "usage"])
def test_help_imports_nothing_heavy(group: str) -> None:
    arguments = [group, "--help"] if group else ["--help"]
    script = (
        "import sys, weft.cli.app\n"
        f"status = weft.cli.app.run({arguments!r})\n"
        f"sys.exit(status or ', '.join(name for name in {HEAVY!r} if name in sys.modules) or 0)"
    )
    ran = subprocess.run((sys.executable, "-c", script), env=environment(), capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("Usage: ")


def test_no_command_shows_what_there_is(alone: Shell) -> None:
    ran = alone.process()
    assert (ran.status, ran.out) == (2, "")
    assert all(f"\n  {group}" in ran.err for group in GROUPS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing",), "No such command 'nothing'; see weft --help"),
        (("files", "list", "--nothing"), "No such option '--nothing'; see weft files list --help"),
        (("files", "upload", "missing.jsonl"), "File 'missing.jsonl' does not exist; see weft files upload --help"),
        (("jobs", "watch", "ftjob-1", "--timeout", "soon"), "'soon' is no duration; write 90s, 15m, 12h or 30d"),
        (("jobs", "watch", "ftjob-1", "--timeout", "0h"), "'0h' is no duration"),
        (("chat", "weft-tiny"), "standard input is empty, and there is no PROMPT; see weft chat --help"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(alone: Shell, arguments: tuple[str, ...], said: str) -> None:
    ran = alone.run(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err
    assert ran.err.startswith("weft: ")
    assert ran.err.count("\n") == 1


def test_without_a_key(alone: Shell) -> None:
    ran = alone.process("files", "list")
    assert ran.status == 4
    assert "set WEFT_API_KEY" in ran.err


def test_without_a_service(alone: Shell) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    ran = alone.run("--base-url", nobody, "files", "list", "--json", WEFT_API_KEY="sk-weft-mine")
    assert (ran.status, ran.out) == (5, "")
    assert '"exit_status": 5' in ran.err
    assert "cannot be reached" in ran.err


def test_the_keys_of_another_vendor_are_not_used(alone: Shell) -> None:
    assert alone.run("files", "list", OPENAI_API_KEY="sk-theirs").status == 4


def test_a_broken_file_is_told_line_by_line(alone: Shell, folder: Path) -> None:
    ran = alone.run("datasets", "check", str(folder / "broken.jsonl"))
    assert ran.status == 1
    assert ["LINES", "2"] in ran.cells
    assert any(cells[:2] == ["2", "no_assistant_message"] for cells in ran.cells)
    assert ran.err == ""
    good = alone.run(
        "datasets", "check", str(folder / "train.jsonl"), "--compare", str(folder / "train.jsonl"), "--json"
    )
    assert (good.status, good.json["valid"], good.json["overlap"]["examples"]) == (0, 12, 12)


def test_too_few_examples_are_told_before_a_job_is_refused(alone: Shell) -> None:
    (alone.folder / "few.jsonl").write_bytes(examples(3))
    (alone.folder / "batch.jsonl").write_text(
        '{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"m"}}'
    )
    ran = alone.run("datasets", "check", "few.jsonl")
    warning = "3 of the lines can be used, and a training file needs at least 10 examples"
    assert (ran.status, ["WARNING", warning] in ran.cells) == (0, True)
    assert len(alone.ok("datasets", "check", "few.jsonl", "--json").json["warnings"]) == 1
    assert alone.ok("datasets", "check", "batch.jsonl", "--purpose", "batch", "--json").json["warnings"] == []


def test_a_reader_that_goes_away_is_no_error(alone: Shell, folder: Path) -> None:
    """As in `weft … | head -1`, here with a reader that is gone from the beginning."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        argv = (*WEFT, "datasets", "check", str(folder / "broken.jsonl"))
        ran = subprocess.run(argv, env=alone.env, stdout=pipe, stderr=subprocess.PIPE, timeout=60)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_a_table_in_a_terminal_and_in_a_pipe(alone: Shell, folder: Path, opened: Open) -> None:
    arguments = ("datasets", "check", str(folder / "broken.jsonl"))
    ran = alone.run(*arguments)
    assert "\x1b" not in ran.out
    terminal = opened(alone, *arguments, width=60)
    assert terminal.end() == 1
    assert "1" in terminal.screen.styles
    assert "WHAT TO DO" in terminal.screen.text
    assert max(map(len, terminal.screen.text.splitlines())) <= 60
    assert "WHAT TO DO" not in ran.out


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_completion_scripts(alone: Shell, shell_name: str) -> None:
    script = alone.ok("completion", shell_name).out
    assert "_WEFT_COMPLETE" in script
    assert alone.ok("completion", shell_name, "--json").json == {"shell": shell_name, "script": script[:-1]}


@pytest.mark.parametrize(
    ("words", "found"),
    [("weft ad", ["adapters"]), ("weft jobs wa", ["watch"]), ("weft files upload --pur", ["--purpose"])],
)
def test_a_shell_completes(alone: Shell, words: str, found: list[str]) -> None:
    count = str(len(words.split()) - 1)
    ran = alone.process(_WEFT_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=count)
    assert [line.partition(",")[2] for line in ran.out.splitlines()] == found
