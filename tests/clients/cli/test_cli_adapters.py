"""Adapters by the command line, against a real service: names that are parsed everywhere, and what they decide."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.contracts.ids import FileId, ProjectId
from service.contracts.layout import file_key
from service.contracts.store import ObjectStore
from service.settings import ServiceSettings
from tests.clients.cli.conftest import Open, Shell
from tests.clients.conftest import Carrier, Tenant, examples, finish
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.stage import Stage
from weft.cli.columns import RESIDENCY
from weft.types import AdapterResidency

BUCKET = "brought"


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    return service_settings.model_copy(update={"import_places": (BUCKET,)})


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.promotions.executor.POLL_SECONDS", 0.1)
        patch.setattr("weft.resources.evaluations.POLL_SECONDS", 0.1)
        yield


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    (tmp_path / "held-out.jsonl").write_bytes(examples(13))
    return tmp_path / "held-out.jsonl"


def standing(shell: Shell, bot: str) -> dict[str, int]:
    """What each alias stands for."""
    return shell.ok("adapters", "show", bot, "--json").json["aliases"]


def test_promotion_rollback_and_history(shell: Shell, bot: str) -> None:
    assert shell.ok("adapters", "versions", bot).cells[0][0] == f"{bot}@v2"
    made = shell.ok("adapters", "promote", f"{bot}@v1", "prod", "--if-revision", "0", "--reason", "first")
    assert ["VERSION", "v1"] in made.cells
    lost = shell.run("adapters", "promote", f"{bot}@v2", "prod", "--if-revision", "0")
    assert (lost.status, "revision_mismatch" in lost.err) == (6, True)
    split = shell.ok("adapters", "split", f"{bot}@prod", "v1=90", "v2=10", "--json").json
    assert [(share["version"], share["weight"]) for share in split["traffic"]] == [(1, 90), (2, 10)]
    assert ["ALIASES", "default=v1, prod=v1 90 % + v2 10 %"] in shell.ok("adapters", "show", bot).cells
    assert ["TRAFFIC", "v1 90 %, v2 10 %"] in shell.ok("adapters", "show", f"{bot}@prod").cells
    assert "TRAFFIC" not in shell.ok("adapters", "promote", f"{bot}@v2", f"{bot}@prod").out
    assert ["VERSION", "v1"] in shell.ok("adapters", "rollback", f"{bot}@prod").cells
    changes = [(cells[2], cells[4]) for cells in shell.ok("adapters", "history", f"{bot}@prod").cells]
    assert changes == [("rollback", "v1"), ("promote", "v2"), ("traffic", "v1"), ("promote", "v1")]
    assert (
        shell.ok("adapters", "history", bot, "--alias", "prod").cells
        == shell.ok("adapters", "history", f"{bot}@prod").cells
    )
    assert {f"{bot}@default", f"{bot}@prod"} == {cells[0] for cells in shell.ok("adapters", "aliases", bot).cells}
    assert ["MODEL", f"{bot}@v2"] in shell.ok("adapters", "show", f"{bot}@v2").cells


def test_an_alias_may_stand_beside_its_adapter(shell: Shell, bot: str) -> None:
    shell.ok("adapters", "promote", f"{bot}@v1", "prod")
    shell.ok("adapters", "split", bot, "prod", "v2=1", "--shadow", "v1=0.5")
    assert standing(shell, bot) == {"default": 1, "prod": 2}
    shell.ok("adapters", "rollback", bot, "prod")
    assert standing(shell, bot) == {"default": 1, "prod": 1}
    shell.ok("adapters", "unalias", bot, "prod")
    shell.ok("adapters", "promote", f"{bot}@v1", "prod")
    shell.ok("adapters", "unalias", f"{bot}@prod")
    assert standing(shell, bot) == {"default": 1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rollback", "bot"), "which alias is meant? write bot@prod, or bot@default"),
        (("unalias", "bot"), "which alias is meant?"),
        (("split", "bot", "v1=90"), "which alias is meant?"),
        (("guard", "bot", "--off"), "which alias is meant?"),
        (("traffic", "bot"), "which alias is meant?"),
        (("rollback", "bot@v3"), "names a version"),
        (("rollback", "bot@prod", "stable"), "name two aliases"),
        (("promote", "bot@v1", "other@prod"), "other@prod is not bot's"),
        (("split", "bot@prod", "v1=much"), "is no version with a number"),
        (("split", "bot", "prod"), "at least one version"),
        (("versions", "bot@prod"), "names a version or an alias; write bot"),
        (("delete", "bot@v1"), "names a version or an alias"),
        (("guard", "bot@prod"), "give --max-error-rate, or --off"),
        (("update", "bot"), "give --description or --metadata"),
        (("evaluate", "bot", "--file", "file-1", "--grader", "none"), "neither exact_match"),
        (("evaluate", "bot", "--file", "file-1", "--grader", "{"), "no JSON"),
        (("evaluate", "bot@v1", "--file", "missing.jsonl"), "is no file here"),
    ],
)
def test_what_is_not_meant_so_is_not_done(shell: Shell, arguments: tuple[str, ...], said: str) -> None:
    ran = shell.run("adapters", *arguments)
    assert (ran.status, ran.out) == (2, ""), ran.err
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_an_alias_is_guarded_and_keeps_its_split(shell: Shell, bot: str) -> None:
    shell.ok("adapters", "promote", f"{bot}@v1", "prod")
    shell.ok("adapters", "split", f"{bot}@prod", "v1=90", "v2=10")
    rule = ("--max-error-rate", "0.05", "--min-requests", "50", "--window", "10m")
    guarded = shell.ok("adapters", "guard", f"{bot}@prod", *rule).cells
    assert ["ROLLS BACK", "above 5 % errors of 50 requests in 600 s"] in guarded
    assert ["TRAFFIC", "v1 90 %, v2 10 %"] in guarded
    assert shell.ok("adapters", "guard", f"{bot}@prod", "--off", "--json").json["automatic_rollback"] is None


def test_what_becomes_of_an_aliass_requests(shell: Shell, bot: str) -> None:
    shell.ok("adapters", "split", f"{bot}@default", "v1=90", "v2=10")
    rows = shell.ok("adapters", "traffic", f"{bot}@default").cells
    assert [cells[:5] for cells in rows] == [
        [f"{bot}@v1", "90 %", "0", "0", "-"],
        [f"{bot}@v2", "10 %", "0", "0", "-"],
    ]
    shell.ok("adapters", "split", f"{bot}@default", "v1=1", "--shadow", "v2=0.5")
    assert [cells[1] for cells in shell.ok("adapters", "traffic", f"{bot}@default").cells[1:]] == ["50 % copied"]
    found = shell.ok("adapters", "traffic", f"{bot}@default", "--json").json
    assert (found["object"], found["alias"]) == ("adapter.alias.traffic", "default")


def test_a_job_promotes_its_model_where_that_is_good_enough(
    service: Service, stage: Stage, shell: Shell, bot: str, held_out: Path
) -> None:
    (shell.folder / "train.jsonl").write_bytes(examples())
    job = ("jobs", "create", "--model", "weft-tiny", "--training-file", "train.jsonl", "--validation-file")
    made = shell.ok(*job, str(held_out), "--promote", f"{bot}@prod").cells
    assert ["PROMOTES TO", "prod"] in made
    finish(service, stage, service.call(stage.claimed()))

    def newest() -> list[str]:
        return shell.ok("adapters", "evaluations", bot).cells[0]

    wait_until(lambda: newest()[2] == "succeeded", what="the evaluation ended")
    assert newest()[1:8] == [f"{bot}@v3", "succeeded", "loss", "0.5", "-", "13", "prod: yes"]
    assert standing(shell, bot) == {"default": 1, "prod": 3}


def test_what_a_job_is_asked_to_promote(shell: Shell, tenant: Tenant, held_out: Path) -> None:
    (shell.folder / "train.jsonl").write_bytes(examples())
    job = ("jobs", "create", "--model", "weft-tiny", "--training-file", "train.jsonl")
    asked = ("--promote", "prod", "--adapter", "new-bot", "--grader", "exact_match", "--min-score", "0.9")
    made = shell.ok(*job, *asked, "--judge-by", str(held_out), "--even-if-worse", "--json").json
    assert made["adapter"] == "new-bot"
    (file,) = tenant.client.files.list(limit=1).data
    assert made["on_success"] == {
        "adapter": None,
        "alias": "prod",
        "evaluation": {"file_id": file.id, "grader": {"type": "exact_match"}},
        "min_score": 0.9,
        "must_beat_current": False,
    }
    shell.ok("jobs", "cancel", made["id"])
    for wrong in (("--promote", "prod"), ("--min-score", "1"), ("--promote", "a@prod", "--adapter", "b")):
        assert shell.run(*job, *wrong).status == 2


def test_an_evaluation_that_cannot_be_made_is_a_failure(
    service: Service, shell: Shell, tenant: Tenant, bot: str, held_out: Path
) -> None:
    file = tenant.client.files.upload(held_out, "fine-tune").id
    service.resources.store.delete([file_key(ProjectId(tenant.project_id), FileId(file))])
    ran = shell.run("adapters", "evaluate", bot, "--file", file, "--timeout", "60s")
    assert (ran.status, ["STATUS", "failed"] in ran.cells) == (1, True), ran.err
    assert ["ERROR", f"The file '{file}' was deleted."] in ran.cells


def test_a_version_is_evaluated(shell: Shell, bot: str, held_out: Path, opened: Open) -> None:
    """By nothing that answers here: how the grading itself goes is tested with the service."""
    grader = {
        "type": "string_check",
        "name": "c",
        "input": "{{item.reference}}",
        "reference": "It",
        "operation": "like",
    }
    (shell.folder / "grader.json").write_text(json.dumps(grader))
    asked = ("adapters", "evaluate", f"{bot}@v2", "--file", str(held_out))
    begun = shell.ok(*asked, "--grader", "grader.json", "--no-wait", "--json").json
    assert (begun["status"], begun["version"], begun["grader"]) == ("queued", 2, grader)
    assert shell.run(*asked, "--grader", json.dumps(grader), "--timeout", "1s").status == 124
    terminal = opened(shell, *asked[:2], bot, *asked[3:], "--grader", "text_similarity")
    wait_until(lambda: len(shell.ok("adapters", "evaluations", bot).cells) == 3, what="the evaluation began")
    terminal.interrupt()
    assert terminal.end() == 130
    assert f"The evaluation goes on; see weft adapters evaluations {bot}" in terminal.screen.text
    newest = shell.ok("adapters", "evaluations", bot, "--limit", "1").cells[0]
    assert (newest[1], newest[3]) == (f"{bot}@v1", "text_similarity")


def test_an_adapter_is_shared_and_no_longer(
    shell: Shell, bot: str, make_project: Callable[[str], tuple[str, str]]
) -> None:
    (one, _), (two, _) = make_project("friend"), make_project("other")
    adapter = next(value for title, value in shell.ok("adapters", "show", bot).cells if title == "ID")
    shared = shell.ok("adapters", "share", adapter, one, two).cells
    assert {cells[0] for cells in shared} == {one, two}
    assert {cells[0] for cells in shell.ok("adapters", "permissions", bot).cells} == {one, two}
    shell.ok("adapters", "unshare", bot, two)
    assert [cells[0] for cells in shell.ok("adapters", "permissions", bot).cells] == [one]
    again = shell.run("adapters", "unshare", bot, two)
    assert (again.status, f"is not shared with {two}" in again.err) == (3, True)


def test_a_replica_that_does_not_say_where_it_holds_a_version() -> None:
    held = [{"replica": "r1", "tier": "gpu"}, {"replica": "r2", "tier": None}]
    fields = {"id": "a", "adapter": "bot", "version": 1, "model": "bot@v1", "pinned": False, "replicas": held}
    shown = RESIDENCY[-1].value(AdapterResidency.model_validate(fields))
    assert shown == "r1 (gpu), r2 (?)"


def test_an_adapter_is_described(shell: Shell, bot: str) -> None:
    said = shell.ok(
        "adapters", "update", bot, "--description", "Answers", "--metadata", "team=help", "--metadata", "a=b"
    )
    assert ["DESCRIPTION", "Answers"] in said.cells
    assert ["METADATA", "a=b, team=help"] in said.cells
    assert shell.ok("adapters", "update", bot, "--description", "", "--json").json["description"] is None


def test_a_folder_and_a_bucket_are_brought(
    service: Service, shell: Shell, saved: Path, carrier: Carrier, opened: Open
) -> None:
    assert ["MODEL", "brought@v1"] in shell.ok("adapters", "push", str(saved), "brought").cells
    store = ObjectStore(service.settings.store.model_copy(update={"bucket": BUCKET}))
    store.ensure_bucket()
    for file in saved.iterdir():
        store.put(f"mine/{file.name}", file.read_bytes())
    terminal = opened(shell, "adapters", "import", "brought", f"s3://{BUCKET}/mine")
    assert terminal.end() == 0
    assert "brought@v2" in terminal.screen.text
    ran = shell.run("adapters", "import", "brought", "s3://elsewhere/mine")
    assert (ran.status, "source_not_allowed" in ran.err) == (1, True)
    carrier.refusing = True
    ran = shell.run("adapters", "import", "brought", f"s3://{BUCKET}/mine")
    assert ran.status == 1
    assert "It is no adapter (adapter_invalid)" in ran.err


def test_an_import_can_be_left(
    service: Service, shell: Shell, tenant: Tenant, saved: Path, carrier: Carrier, opened: Open
) -> None:
    carrier.idle = True
    store = ObjectStore(service.settings.store.model_copy(update={"bucket": BUCKET}))
    store.ensure_bucket()
    for file in saved.iterdir():
        store.put(f"left/{file.name}", file.read_bytes())
    terminal = opened(shell, "adapters", "import", "left", f"s3://{BUCKET}/left")
    imports = tenant.client.adapters.imports
    wait_until(lambda: "left" in {each.adapter for each in imports.list()}, what="the import began")
    terminal.interrupt()
    assert terminal.end() == 130
    assert "The import goes on; see weft adapters versions left" in terminal.screen.text
    assert "Traceback" not in terminal.screen.text
    carrier.idle = False
    assert imports.wait(imports.list(limit=1).data[0].id, timeout=60).model == "left@v1"


def test_an_adapter_is_taken_along_and_traced(shell: Shell, bot: str) -> None:
    files = shell.ok("adapters", "pull", f"{bot}@v1", "taken", "--json").json
    assert {Path(file["path"]).name for file in files} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert all((shell.folder / file["path"]).stat().st_size == file["bytes"] for file in files)
    again = shell.run("adapters", "pull", bot, "taken")
    assert (again.status, "exists already" in again.err) == (1, True)
    for reference in ((bot, "v1"), (f"{bot}@v1",), (f"{bot}@default",)):
        assert ["training_file.filename", "train.jsonl"] in shell.ok("adapters", "provenance", *reference).cells
    assert shell.run("adapters", "show", "none").status == 3
    assert shell.run("adapters", "promote", "a@@b", "prod").status == 2


def test_an_adapter_is_deleted_and_restored(shell: Shell, bot: str) -> None:
    shell.ok("adapters", "delete", bot)
    assert bot not in shell.ok("adapters", "list").out
    shell.ok("adapters", "restore", bot)
    assert ["LATEST", "v2"] in shell.ok("adapters", "show", bot).cells
