"""The pages of docs/, run as a reader would: page after page, in a folder of the reader's, with the installed client.

Blocks of `sh` and `python` are run as printed; those of `console` start or stop a stack, and only their words are held
to what `weftd` understands.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.installed import ROOT, install
from tests.e2e.stack import WEFTD, Stack

DOCS = ROOT / "docs"
INDEX = (DOCS / "README.md").read_text()
PAGES: list[str] = re.findall(r"^\| \[.*?\]\((.*?\.md)\)", INDEX, re.MULTILINE)
BLOCKS = re.compile(r"^```(sh|python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Reader:
    """Somebody with a folder, a shell that remembers, and the client installed."""

    folder: Path
    commands: Path
    stack: Stack

    @property
    def variables(self) -> dict[str, str]:
        ours = f"{self.commands}:{Path(sys.executable).parent}"
        return {"PATH": f"{ours}:{os.environ['PATH']}", "HOME": str(self.folder), "WEFT_BASE_URL": self.stack.base_url}

    def run(self, script: str) -> str:
        """What a shell prints, which goes on where the last one ended."""
        memory = self.folder / "memory.sh"
        whole = f"set -euo pipefail\n[ ! -f {memory} ] || . {memory}\n{script}\nexport -p > {memory}\n"
        done = subprocess.run(
            ["bash", "-c", whole], cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=280,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def reader(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    (folder / "weft-data").symlink_to(stack.data.root)
    return Reader(folder, install(tmp_path_factory.mktemp("installed")), stack)


def script_of(text: str) -> str:
    pieces = []
    for kind, block in BLOCKS.findall(text):
        if kind == "sh":
            pieces.append(block)
        elif kind == "python":
            pieces.append(f"python - <<'END-OF-PYTHON'\n{block}END-OF-PYTHON\n")
    return "".join(pieces)


@pytest.mark.stack
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_do_what_it_says(reader: Reader, page: str) -> None:
    script = script_of((DOCS / page).read_text())
    assert script
    print(reader.run(script))


@pytest.mark.stack
def test_the_tour_is_short_and_runs_as_it_stands(reader: Reader) -> None:
    assert len((DOCS / "tour.py").read_text().splitlines()) <= 40
    said = reader.run(f"python {DOCS / 'tour.py'} train.jsonl held-out.jsonl")
    print(said)
    assert "the copy says what the original says" in said


@pytest.mark.parametrize("page", PAGES)
def test_every_weftd_command_of_a_page_is_understood(page: str) -> None:
    for kind, block in BLOCKS.findall((DOCS / page).read_text()):
        for line in re.findall(r"^\$ weftd (.*)$", block, re.MULTILINE) if kind == "console" else ():
            words = line.split()
            shown = subprocess.run([*WEFTD, words[0], "--help"], capture_output=True, text=True, timeout=60, check=True)
            assert all(word in shown.stdout for word in words if word.startswith("--")), line


def test_every_make_target_of_the_pages_exists() -> None:
    known = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCS.glob("*.md"):
        assert set(re.findall(r"(?:`|^\$ )make ([a-z-]+)", path.read_text(), re.MULTILINE)) <= known, path.name


def test_the_index_has_every_page() -> None:
    assert len(PAGES) >= 5
    assert {path.name for path in DOCS.glob("*.md")} <= {"README.md", *re.findall(r"\((\w[\w-]*\.md)\)", INDEX)}


def test_links_lead_somewhere() -> None:
    for path in (ROOT / "README.md", ROOT / "clients/python/README.md", *DOCS.glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+?)(?:#.*?)?\)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), f"{path.name}: {target}"
