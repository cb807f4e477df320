"""The administrator's routes through the stock SDK, and what a key opens."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest

from tests.conftest import wait_until
from tests.service.conftest import Service


@pytest.fixture(scope="module")
def sdk(service: Service) -> Iterator[openai.OpenAI]:
    key = service.settings.admin_key.get_secret_value()
    with openai.OpenAI(admin_api_key=key, base_url=f"{service.url}/v1", max_retries=0) as made:
        yield made


def test_a_project_lives_as_in_openais_api(sdk: openai.OpenAI) -> None:
    made = sdk.admin.organization.projects.create(name="life")
    assert made.object == "organization.project"
    assert (made.name, made.status, made.archived_at) == ("life", "active", None)
    assert abs(made.created_at - time.time()) < 60
    assert sdk.admin.organization.projects.retrieve(made.id) == made
    archived = sdk.admin.organization.projects.archive(made.id)
    assert archived.status == "archived"
    assert archived.archived_at is not None
    assert sdk.admin.organization.projects.archive(made.id) == archived
    assert made.id not in {project.id for project in sdk.admin.organization.projects.list()}
    assert made.id in {project.id for project in sdk.admin.organization.projects.list(include_archived=True)}


def test_a_name_exists_once(admin: httpx2.Client, sdk: openai.OpenAI) -> None:
    sdk.admin.organization.projects.create(name="once")
    with pytest.raises(openai.ConflictError) as caught:
        sdk.admin.organization.projects.create(name="once")
    assert (caught.value.code, caught.value.param) == ("project_exists", "name")
    assert caught.value.response.headers["x-should-retry"] == "false"
    found = admin.get("/organization/projects", params={"name": "once"}).json()
    assert [project["name"] for project in found["data"]] == ["once"]
    assert admin.get("/organization/projects", params={"name": "never"}).json()["data"] == []


def test_of_many_who_create_the_same_name_one_succeeds(admin: httpx2.Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: admin.post("/organization/projects", json={"name": "race"}), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7


def test_projects_are_listed_in_pages(sdk: openai.OpenAI, admin: httpx2.Client) -> None:
    made = [sdk.admin.organization.projects.create(name=f"page-{number}").id for number in range(5)]
    listed = [project.id for project in sdk.admin.organization.projects.list(limit=2) if project.id in made]
    assert listed == made[::-1]
    first = admin.get("/organization/projects", params={"limit": 2}).json()
    assert first["object"] == "list"
    assert first["has_more"] is True
    assert (first["first_id"], first["last_id"]) == (first["data"][0]["id"], first["data"][1]["id"])
    assert admin.get("/organization/projects", params={"after": "proj_none"}).json()["error"]["param"] == "after"
    assert admin.get("/organization/projects", params={"limit": 101}).status_code == 400


def test_a_key_lives_as_in_openais_api(sdk: openai.OpenAI, admin: httpx2.Client) -> None:
    project = sdk.admin.organization.projects.create(name="keys").id
    made = admin.post(f"/organization/projects/{project}/api_keys", json={"name": "mine"}).json()
    assert made["value"].startswith("sk-weft-")
    keys = sdk.admin.organization.projects.api_keys
    (listed,) = keys.list(project_id=project)
    assert (listed.id, listed.name, listed.object) == (made["id"], "mine", "organization.project.api_key")
    assert listed.redacted_value == made["redacted_value"]
    assert listed.last_used_at is None
    assert made["value"] not in listed.model_dump_json()
    assert keys.retrieve(listed.id, project_id=project) == listed
    deleted = keys.delete(listed.id, project_id=project)
    assert (deleted.id, deleted.deleted, deleted.object) == (listed.id, True, "organization.project.api_key.deleted")
    with pytest.raises(openai.NotFoundError):
        keys.delete(listed.id, project_id=project)
    assert list(keys.list(project_id=project)) == []


def test_a_key_of_another_project_is_not_found(
    sdk: openai.OpenAI, make_project: Callable[[str], tuple[str, str]]
) -> None:
    (first, _), (second, _) = make_project("first"), make_project("second")
    keys = sdk.admin.organization.projects.api_keys
    (key,) = keys.list(project_id=first)
    for call in (keys.retrieve, keys.delete):
        with pytest.raises(openai.NotFoundError):
            call(key.id, project_id=second)
    assert [found.id for found in keys.list(project_id=first)] == [key.id]


def test_use_of_a_key_is_noted(
    sdk: openai.OpenAI, client: Callable[[str], openai.OpenAI], make_project: Callable[[str], tuple[str, str]]
) -> None:
    project, key = make_project("noted")
    client(key).files.list()
    (listed,) = sdk.admin.organization.projects.api_keys.list(project_id=project)
    assert listed.last_used_at is not None


def refused(api: openai.OpenAI) -> bool:
    try:
        api.files.list()
    except openai.AuthenticationError:
        return True
    return False


@pytest.mark.parametrize("how", ["revoked", "archived"])
def test_a_key_dies_within_ten_seconds(
    sdk: openai.OpenAI,
    client: Callable[[str], openai.OpenAI],
    make_project: Callable[[str], tuple[str, str]],
    how: str,
) -> None:
    project, key = make_project(how)
    api = client(key)
    assert not refused(api)
    if how == "archived":
        sdk.admin.organization.projects.archive(project)
    else:
        (listed,) = sdk.admin.organization.projects.api_keys.list(project_id=project)
        sdk.admin.organization.projects.api_keys.delete(listed.id, project_id=project)
    wait_until(lambda: refused(api), seconds=10, what="the key refused")


def test_an_archived_project_takes_no_new_keys(admin: httpx2.Client, sdk: openai.OpenAI) -> None:
    project = sdk.admin.organization.projects.create(name="closed").id
    sdk.admin.organization.projects.archive(project)
    response = admin.post(f"/organization/projects/{project}/api_keys", json={"name": "late"})
    assert (response.status_code, response.json()["error"]["code"]) == (409, "project_archived")


def test_only_the_admin_key_opens_the_admin_routes(
    service: Service, make_project: Callable[[str], tuple[str, str]]
) -> None:
    project, key = make_project("curious")
    others = [
        key,
        service.settings.worker_token.get_secret_value(),
        service.settings.replica_token.get_secret_value(),
        service.settings.admin_key.get_secret_value()[:-1],
        "é" * 40,
    ]
    routes = [
        ("GET", ""), ("POST", ""), ("GET", f"/{project}"), ("POST", f"/{project}/archive"),
        ("POST", f"/{project}/api_keys"), ("GET", f"/{project}/api_keys"), ("DELETE", f"/{project}/api_keys/x"),
        ("POST", f"/{project}/service_accounts"), ("POST", f"/{project}/rate_limits/rl-all-models"),
        ("GET", f"/{project}/spend_limit"), ("GET", "/../admin_api_keys"), ("GET", "/../audit_logs"),
    ]  # fmt: skip
    for token in others:
        headers = {b"authorization": b"Bearer " + token.encode()}
        for method, path in routes:
            url = f"{service.url}/v1/organization/projects{path}"
            assert httpx2.request(method, url, headers=headers).status_code == 401


def test_the_admin_key_is_no_tenant(service: Service, client: Callable[[str], openai.OpenAI]) -> None:
    with pytest.raises(openai.AuthenticationError):
        client(service.settings.admin_key.get_secret_value()).files.list()


@pytest.mark.parametrize("name", ["", "a\nb", "a\0b", "x" * 129])
def test_a_name_that_would_garble_a_page_is_refused(admin: httpx2.Client, name: str) -> None:
    response = admin.post("/organization/projects", json={"name": name})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "name")
