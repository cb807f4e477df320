"""The client as a stranger has it: its wheel, built here, in an environment with what it depends on and nothing else.

What it depends on is copied from the environment of the tests, so that no test asks a package index.
"""

import shutil
import subprocess
import sys
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def install(folder: Path) -> Path:
    """Returns the new environment's folder of commands."""
    home = folder / "environment"
    venv.create(home, symlinks=True)
    packages = next((home / "lib").glob("python3*")) / "site-packages"
    for dependency in closure(Requirement("weft[cli]")).values():
        _copy(dependency, packages)
    _uv("build", "--wheel", "--no-build-isolation", "--out-dir", folder / "wheels", ROOT / "clients" / "python")
    _uv("pip", "install", "--no-deps", "--python", home / "bin" / "python", *(folder / "wheels").glob("weft-*.whl"))
    return home / "bin"


def closure(wanted: Requirement) -> dict[str, Distribution]:
    """What a requirement brings with it, by name, without itself."""
    found: dict[str, Distribution] = {}
    pending = [wanted]
    while pending:
        requirement = pending.pop()
        extras = requirement.extras | {""}
        for inner in map(Requirement, distribution(requirement.name).requires or ()):
            needed = inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras)
            if needed and inner.name not in found:
                found[inner.name] = distribution(inner.name)
                pending.append(inner)
    return found


def _copy(package: Distribution, target: Path) -> None:
    for file in package.files or ():
        if ".." not in file.parts and file.suffix != ".pyc":
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package.locate_file(file), target / file)  # type: ignore[arg-type]


def _uv(*arguments: str | Path) -> None:
    # Offline, and with the build back end that is installed already.
    command = [Path(sys.executable).parent / "uv", *arguments, "--offline", "--quiet"]
    subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
