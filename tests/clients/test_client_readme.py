"""The client's README: its Python and its commands are run as they stand, and it names every command and status."""

import io
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from service.settings import ServiceSettings
from tests.clients.cli.conftest import Shell, shell
from tests.clients.cli.test_cli_startup import COMMANDS
from tests.clients.conftest import Tenant, examples
from tests.conftest import free_port
from tests.service.conftest import Service
from tests.service.gateway.conftest import beat
from tests.service.gateway.upstream import Upstream
from weft import Weft
from weft.cli import failures

__all__ = ["shell"]

README = (Path(__file__).parents[2] / "clients/python/README.md").read_text()
ANSWER = 'He said "usage":{}!'


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    return service_settings.model_copy(update={"replica_ttl_seconds": 600.0, "lease_ttl_seconds": 600.0})


@pytest.fixture(scope="module")
def replica(service: Service) -> Iterator[Upstream]:
    """Answers with vLLM's bytes."""
    made = Upstream(free_port())
    made.start()
    beat(service, made)
    yield made
    made.stop()


@pytest.fixture
def tenant(service: Service, make_project: Callable[[str], tuple[str, str]], request: pytest.FixtureRequest) -> Tenant:
    """A project for each test: all speak of a `support-bot`."""
    project, key = make_project(request.node.name)
    return Tenant(project, key, Weft(api_key=key, base_url=f"{service.url}/v1"))


def test_the_python_runs(
    service: Service, tenant: Tenant, worker: None, replica: Upstream, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_API_KEY", tenant.key)
    monkeypatch.setenv("WEFT_BASE_URL", f"{service.url}/v1")
    (source,) = blocks("python")
    said = io.StringIO()
    with redirect_stdout(said):
        exec(compile(source, "README.md", "exec"), {})
    lines = said.getvalue().splitlines()
    assert "Step 2/2" in lines
    assert lines[-1] == ANSWER
    assert tenant.client.adapters.retrieve("support-bot").aliases == {"default": 1, "prod": 1}


def test_the_commands_run(tenant: Tenant, shell: Shell, worker: None, replica: Upstream) -> None:
    (shell.folder / "train.jsonl").write_bytes(examples())
    (shell.folder / "held-out.jsonl").write_bytes(examples(13))
    installing, commands = blocks("sh")
    assert [line.split("#")[0].split()[:2] for line in installing.splitlines()] == [["pip", "install"]] * 2
    said = {line: shell.ok(*shlex.split(line)[1:]).out for line in commands.splitlines()}
    assert said['weft chat support-bot@prod "Hello"'] == ANSWER + "\n"
    assert "TRAFFIC\tv1 90 %, v2 10 %" in said["weft adapters split support-bot@prod v1=90 v2=10"]
    assert "VERSION\tv1\n" in said["weft adapters rollback support-bot@prod"]
    changes = [line.split("\t")[1:3] for line in said["weft adapters history support-bot"].splitlines()]
    made = ["promote", "traffic", "update", "promote", "rollback"]
    assert changes == [*(["prod", action] for action in reversed(made)), ["default", "promote"]]


def test_every_command_and_exit_status_is_named() -> None:
    told = dict(re.findall(r"^\| (.*?) \| (.*) \|$", README, re.MULTILINE))
    rows = {title: re.findall(r"`([a-z-]+)`", cells) for title, cells in told.items()}
    assert [words for words in COMMANDS if len(words) == 1 and f"`weft {words[0]}" not in "".join(told)] == []
    named = {("adapters", name) for title, names in rows.items() if title.startswith("…") for name in names}
    for group in {words[0] for words in COMMANDS if len(words) > 1}:
        title = next(title for title in told if title.startswith(f"`weft {group}`"))
        named |= {(group, name) for name in rows[title]}
    assert {words for words in COMMANDS if len(words) > 1} <= named
    statuses = {value for name, value in vars(failures).items() if name.isupper() and isinstance(value, int)}
    assert statuses | {0} == {int(title) for title in told if title.isdecimal()}
