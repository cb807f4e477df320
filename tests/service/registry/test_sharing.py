"""What belongs to one project is unknown to another, until an administrator grants its use."""

from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import pytest

from service.adapters import registry
from tests.service.registry.conftest import Owner

EVERYWHERE: Sequence[tuple[str, str, Any]] = (
    ("GET", "", None),
    ("PATCH", "", {"description": "x"}),
    ("DELETE", "", None),
    ("POST", "/restore", None),
    ("POST", "/versions", "source"),
    ("GET", "/versions", None),
    ("GET", "/versions/1", None),
    ("DELETE", "/versions/1", None),
    ("GET", "/versions/1/provenance", None),
    ("POST", "/versions/1/warm", None),
    ("POST", "/versions/1/pin", None),
    ("DELETE", "/versions/1/pin", None),
    ("GET", "/aliases", None),
    ("GET", "/aliases/default", None),
    ("PUT", "/aliases/default", {"version": 1}),
    ("DELETE", "/aliases/default", None),
    ("POST", "/rollback", {}),
    ("GET", "/history", None),
    ("GET", "/residency", None),
)


def grant(admin: httpx2.Client, adapter: str, other: Owner) -> str:
    answer = admin.post(f"/adapters/{adapter}/permissions", json={"project_ids": [other.project]})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][0]["id"]


def listed(owner: Owner) -> set[str]:
    return {each["id"] for each in owner.ask("GET", "/models")["data"]}


def test_a_foreign_adapter_is_unknown_everywhere_granted_or_not(
    admin: httpx2.Client, owners: Callable[[], Owner]
) -> None:
    owner, other = owners(), owners()
    (model,) = owner.registered("mine")
    (own,) = other.registered("own")
    before = owner.ask("GET", "/adapters/mine"), owner.ask("GET", "/adapters/mine/history")
    for granted in (False, True):
        if granted:
            grant(admin, "mine", other)
        for method, path, body in EVERYWHERE:
            sent = {"source": {"type": "model", "model": own}} if body == "source" else body
            options = {} if sent is None else {"json": sent}
            told = [other.ask(method, f"/adapters/{name}{path}", 404, **options) for name in ("mine", "none")]
            assert str(told[0]).replace("mine", "none") == str(told[1]), (method, path)
        assert [each["name"] for each in other.ask("GET", "/adapters")["data"]] == ["own"]
        source = {"source": {"type": "model", "model": model}}
        assert other.refused("POST", "/adapters/own/versions", 404, json=source) == "model_not_found"
    assert (owner.ask("GET", "/adapters/mine"), owner.ask("GET", "/adapters/mine/history")) == before


def test_references_are_each_projects_own(owners: Callable[[], Owner]) -> None:
    first, second = owners(), owners()
    for owner in (first, second):
        owner.registered("bot")
    assert first.route("bot").shares[0].artifact != second.route("bot").shares[0].artifact  # type: ignore[union-attr]
    third = owners()
    assert third.route("bot") is None
    assert third.refused("GET", "/models/bot", 404) == "model_not_found"


def test_a_job_and_a_checkpoint_of_another_are_no_sources(owners: Callable[[], Owner]) -> None:
    owner, other = owners(), owners()
    job, model = owner.trained()
    other.ask("POST", "/adapters", json={"name": "bot"})
    for source in (
        {"type": "job", "job_id": job},
        {"type": "checkpoint", "checkpoint_id": "ftckpt_1"},
        {"type": "model", "model": model},
    ):
        other.refused("POST", "/adapters/bot/versions", 404, json={"source": source})


def test_a_granted_adapter_can_be_used_and_not_changed(admin: httpx2.Client, owners: Callable[[], Owner]) -> None:
    owner, other = owners(), owners()
    owner.registered("bot-shared", 2)
    owner.ask("PUT", "/adapters/bot-shared/aliases/prod", json={"version": 2})
    assert other.route("bot-shared") is None
    permission = grant(admin, "bot-shared", other)
    assert grant(admin, "bot-shared", other) == permission
    for reference in ("bot-shared", "bot-shared@prod", "bot-shared@v1"):
        assert other.route(reference) == owner.route(reference)
    assert "bot-shared" in listed(other)
    assert other.refused("DELETE", "/models/bot-shared", 404) == "model_not_found"
    source = {"name": "x", "from": {"type": "model", "model": "bot-shared"}}
    assert other.refused("POST", "/adapters", 400, json=source) == "model_not_registrable"
    body = {"model": "bot-shared", "training_file": other.service.call(other.stage.file(other.project))}
    assert other.refused("POST", "/fine_tuning/jobs", 400, json=body) == "model_not_trainable"
    owner.ask("DELETE", "/adapters/bot-shared")
    assert other.route("bot-shared") is None
    owner.ask("POST", "/adapters/bot-shared/restore")
    assert other.served("bot-shared@prod") == {2: 1.0}
    gone = admin.delete(f"/adapters/bot-shared/permissions/{permission}")
    assert gone.json()["deleted"]
    assert admin.delete(f"/adapters/bot-shared/permissions/{permission}").status_code == 404
    assert other.route("bot-shared@prod") is None
    assert "bot-shared" not in listed(other)


def test_ones_own_goes_before_what_is_granted(admin: httpx2.Client, owners: Callable[[], Owner]) -> None:
    owner, other = owners(), owners()
    owner.registered("bot-own")
    grant(admin, owner.ask("GET", "/adapters/bot-own")["id"], other)
    assert other.route("bot-own") == owner.route("bot-own")
    other.registered("bot-own")
    assert other.route("bot-own") != owner.route("bot-own")
    # Requests must not change over to another project's model because one's own was deleted.
    other.ask("DELETE", "/adapters/bot-own")
    assert other.route("bot-own") is None
    ambiguous = admin.get("/adapters/bot-own/permissions")
    assert ambiguous.status_code == 200, "the deleted one does not count"
    other.ask("POST", "/adapters/bot-own/restore")
    ambiguous = admin.get("/adapters/bot-own/permissions")
    assert (ambiguous.status_code, ambiguous.json()["error"]["code"]) == (400, "adapter_ambiguous")


def test_the_control_role_looks_up_as_one_project_too(owners: Callable[[], Owner]) -> None:
    """Where no policy holds it back, the lookup itself must."""
    owner, other = owners(), owners()
    owner.registered("bot-seen")

    async def found(project: Any) -> Any:
        async with owner.stage.resources.database.control() as session:
            return await registry.find(session, project, "bot-seen")

    assert owner.service.call(found(owner.project)).name == "bot-seen@v1"
    assert owner.service.call(found(other.project)) is None


def test_permissions_are_the_administrators(admin: httpx2.Client, owner: Owner) -> None:
    owner.registered("bot-admin")
    assert owner.http.get("/adapters/bot-admin/permissions").status_code == 401
    unknown = admin.post("/adapters/bot-admin/permissions", json={"project_ids": ["proj_unknown"]})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "project_not_found")
    assert admin.get("/adapters/none/permissions").json()["error"]["code"] == "adapter_not_found"


@pytest.mark.parametrize("name", ["%00", "..", "a%2Fb", "%F0%9F%98%80", "x" * 300])
def test_odd_names_are_unknown(owner: Owner, name: str) -> None:
    assert owner.http.get(f"/adapters/{name}/versions/1").status_code in {400, 404}
