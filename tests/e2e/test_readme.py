"""What the README tells a reader to type is run here, so that it stays true."""

import json
import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from deploy.local.tiny_base.tasks import examples
from tests.clients.cli.terminal import Terminal, environment
from tests.e2e.stack import WEFTD, Stack

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^\$ (\S.*?)(?:\s+#.*)?$", README, re.MULTILINE)
SHOWN = re.findall(r"^## From a terminal\n.*?^```console\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
STEP = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
"""A command, maybe of several lines, and what it shows."""
IDS = re.compile(r"\b(?:file|ftjob)-\w+|(?<=::)\w+")
CURVE = re.compile(r"^ *[\d.e+-]* ┤")
VARYING = ((re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d"), "DATE"), (IDS, "ID"))
NUMBERS = re.compile(r"[\d.]+(?:e[-+]?\d+)?")


@pytest.mark.stack
def test_the_python_example_runs_as_printed(stack: Stack, tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    code = code.replace("http://127.0.0.1:8000/v1", stack.base_url).replace("sk-weft-…", stack.project("readme"))
    lines = examples("support-desk", 200, seed=1)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '{"name":"Mira Kato","city":"Lund"}'


@pytest.mark.stack
def test_a_terminal_shows_what_the_readme_shows(stack: Stack, tmp_path: Path) -> None:
    env = environment(WEFT_BASE_URL=stack.base_url, WEFT_API_KEY=stack.project("terminal"))
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    real: dict[str, str] = {}
    for command, expected in STEP.findall(SHOWN[0]):
        for ours, theirs in real.items():
            command = command.replace(ours, theirs)
        with closing(Terminal(("bash", "-c", command), env, tmp_path, width=100, height=40)) as terminal:
            status, shown = terminal.end(120), terminal.screen.text
        print(f"$ {command}\n{shown}")
        assert status == 0
        assert steady(shown) == steady(expected)
        real |= dict(zip(IDS.findall(expected), IDS.findall(shown), strict=True))


def steady(shown: str) -> list[str]:
    """Without what is another time another one: ids, dates, how fast it was, and how exactly the loss fell."""
    for varying, name in VARYING:
        shown = varying.sub(name, shown)
    lines = [line.rstrip() for line in shown.splitlines() if not CURVE.match(line)]
    return [NUMBERS.sub("N", line) if line.startswith("step ") else line for line in lines]


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make ")])
def test_every_make_target_of_the_readme_exists(command: str) -> None:
    target = command.split()[1]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("weftd ")])
def test_every_weftd_command_of_the_readme_is_understood(command: str) -> None:
    words = command.split()[1:]
    known = words[: next(place for place, word in enumerate(words) if word.startswith("--"))]
    shown = subprocess.run([*WEFTD, *known, "--help"], capture_output=True, text=True, timeout=60, check=True)
    for option in (word for word in words if word.startswith("--")):
        assert option in shown.stdout


def test_the_readme_names_commands() -> None:
    assert len(COMMANDS) >= 9


@pytest.mark.parametrize("name", re.findall(r"^\| `(WEFT_[A-Z_]+)` \|", README, re.MULTILINE))
def test_every_setting_of_the_readme_exists_with_its_default(name: str) -> None:
    from inference.settings import ReplicaSettings
    from service.settings import ServiceSettings
    from trainer.settings import TrainerSettings

    default = re.search(rf"^\| `{name}` \| (\S+)", README, re.MULTILINE)
    assert default is not None
    for settings in (TrainerSettings, ReplicaSettings, ServiceSettings):
        field = name.lower().removeprefix(settings.model_config.get("env_prefix", "").lower())
        if field in settings.model_fields:
            actual = settings.model_fields[field].default
            assert default[1] == "none" if actual is None else type(actual)(default[1]) == actual
            return
    pytest.fail(f"no part knows {name}")


def test_no_machine_path_or_index_address_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # Spelt in pieces, or this file would be the one that is found.
    banned = re.compile("|".join(["py" + r"pi\.org", "python" + r"hosted\.org", "npm" + r"js\.(org|com)"]))
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".lock", ".txt", ".sql", ".json"} or path.name == "Makefile":
            text = path.read_text(encoding="utf-8")
            assert not banned.search(text), name
            assert f"{ROOT}{os.sep}" not in text, name
