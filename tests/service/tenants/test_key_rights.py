"""What a key may do, until when, and how it is replaced; keys of accounts and of administrators."""

import time
from collections.abc import Callable, Iterator

import httpx2
import openai
import pytest

from service.tenants.scopes import AREAS, INFERENCE
from tests.conftest import wait_until
from tests.service.conftest import Service

MakeProject = Callable[[str], tuple[str, str]]


@pytest.fixture(scope="module")
def sdk(service: Service) -> Iterator[openai.OpenAI]:
    key = service.settings.admin_key.get_secret_value()
    with openai.OpenAI(admin_api_key=key, base_url=f"{service.url}/v1", max_retries=0) as made:
        yield made


@pytest.fixture
def project(make_project: MakeProject, request: pytest.FixtureRequest) -> str:
    return make_project(request.node.name)[0]


@pytest.fixture
def keys(admin: httpx2.Client, project: str) -> Callable[..., dict]:
    def make(**body: object) -> dict:
        made = admin.post(f"/organization/projects/{project}/api_keys", json={"name": "k", **body})
        assert made.status_code == 200, made.text
        return made.json()

    return make


def status(service: Service, key: str, method: str, path: str) -> int:
    return httpx2.request(
        method, f"{service.url}/v1{path}", headers={"authorization": f"Bearer {key}"}, json={}
    ).status_code


ROUTES = {
    "GET files": ("GET", "/files"),
    "POST files": ("POST", "/files"),
    "GET jobs": ("GET", "/fine_tuning/jobs"),
    "POST jobs": ("POST", "/fine_tuning/jobs"),
    "GET models": ("GET", "/models"),
    "DELETE models": ("DELETE", "/models/x"),
    "chat": ("POST", "/chat/completions"),
}


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        ([], set(ROUTES)),
        (["api.all.read"], {"GET files", "GET jobs", "GET models"}),
        (["api.model.request"], {"chat"}),
        (["api.files.write"], {"GET files", "POST files"}),
        (["api.fine_tuning.read", "api.model.request"], {"GET jobs", "chat"}),
        (["api.fine_tuning.write", "api.model.write"], {"GET jobs", "POST jobs", "GET models", "DELETE models"}),
    ],
)
def test_a_key_opens_what_its_scopes_say(
    service: Service, keys: Callable[..., dict], scopes: list[str], allowed: set[str]
) -> None:
    key = keys(scopes=scopes)["value"]
    refused = {name for name, (method, path) in ROUTES.items() if status(service, key, method, path) == 403}
    assert refused == set(ROUTES) - allowed


@pytest.mark.parametrize(
    ("path", "body", "scope"),
    [
        (
            "/adapters/bot/evaluations",
            {"version": 1, "file_id": "file-x", "grader": {"type": "exact_match"}},
            "api.model.write",
        ),
        (
            "/fine_tuning/jobs",
            {"model": "weft-tiny", "training_file": "file-x", "adapter": "bot", "on_success": {"alias": "default"}},
            "api.fine_tuning.write",
        ),
        (
            "/batches",
            {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
            "api.batch.write",
        ),
    ],
)
def test_what_has_models_answer_needs_the_right_to_ask_them(
    service: Service, keys: Callable[..., dict], path: str, body: dict, scope: str
) -> None:
    def asked(*scopes: str) -> int:
        headers = {"authorization": f"Bearer {keys(scopes=list(scopes))['value']}"}
        return httpx2.post(f"{service.url}/v1{path}", headers=headers, json=body).status_code

    assert asked(scope) == 403
    assert asked(scope, "api.model.request") in {400, 404}, "nothing of that name is there"


def test_a_missing_scope_is_named(service: Service, keys: Callable[..., dict]) -> None:
    api = service.client(keys(scopes=["api.model.request"])["value"])
    with pytest.raises(openai.PermissionDeniedError, match=r"api\.all\.read or api\.files\.read") as caught:
        api.files.list()
    assert caught.value.code == "insufficient_permissions"


def test_an_unknown_scope_is_refused(admin: httpx2.Client, project: str) -> None:
    body = {"name": "k", "scopes": ["api.everything"]}
    refused = admin.post(f"/organization/projects/{project}/api_keys", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "scopes.0")


def test_a_key_ends_at_its_time_and_not_when_a_cache_forgets_it(
    service: Service, sdk: openai.OpenAI, keys: Callable[..., dict], project: str
) -> None:
    made = keys(expires_in_seconds=2)
    assert made["expires_at"] - made["created_at"] == 2
    for route in ("GET files", "chat"):
        assert status(service, made["value"], *ROUTES[route]) != 401
    begun = time.monotonic()
    wait_until(lambda: status(service, made["value"], *ROUTES["GET files"]) == 401, seconds=5)
    assert time.monotonic() - begun < 4
    assert status(service, made["value"], *ROUTES["chat"]) == 401
    assert made["id"] not in {key.id for key in sdk.admin.organization.projects.api_keys.list(project_id=project)}


def test_scopes_and_expiry_can_be_changed(
    service: Service, sdk: openai.OpenAI, keys: Callable[..., dict], project: str
) -> None:
    made = keys()
    api = sdk.admin.organization.projects.api_keys
    changed = api.update(made["id"], project_id=project, scopes=["api.model.request"], expires_in_seconds=1000)
    assert changed.model_dump()["scopes"] == ["api.model.request"]
    assert changed.expires_at
    assert abs(changed.expires_at - time.time() - 1000) < 60
    wait_until(lambda: status(service, made["value"], *ROUTES["GET files"]) == 403, seconds=10)
    assert api.update(made["id"], project_id=project, scopes=[]).expires_at == changed.expires_at
    wait_until(lambda: status(service, made["value"], *ROUTES["GET files"]) == 200, seconds=10)


def test_a_rotated_key_goes_on_for_its_grace(
    service: Service, admin: httpx2.Client, keys: Callable[..., dict], project: str
) -> None:
    old = keys(scopes=["api.all.read"])
    path = f"/organization/projects/{project}/api_keys/{old['id']}/rotate"
    new = admin.post(path, json={"grace_seconds": 2}).json()
    assert new["id"] != old["id"]
    assert (new["name"], new["scopes"], new["expires_at"]) == ("k", ["api.all.read"], None)
    assert [status(service, key["value"], *ROUTES["GET files"]) for key in (old, new)] == [200, 200]
    wait_until(lambda: status(service, old["value"], *ROUTES["GET files"]) == 401, seconds=10)
    assert status(service, new["value"], *ROUTES["GET files"]) == 200


def test_a_service_account_lives_as_in_openais_api(service: Service, sdk: openai.OpenAI, project: str) -> None:
    accounts = sdk.admin.organization.projects.service_accounts
    made = accounts.create(project_id=project, name="ci")
    assert made.role == "member"
    assert made.api_key
    assert service.client(made.api_key.value).files.list().data == []
    key = next(iter(sdk.admin.organization.projects.api_keys.list(project_id=project)))
    assert (key.owner.service_account and key.owner.service_account.id) == made.id
    assert accounts.retrieve(made.id, project_id=project).name == "ci"
    assert accounts.update(made.id, project_id=project, name="cd").name == "cd"
    assert [account.name for account in accounts.list(project_id=project)] == ["cd"]
    assert accounts.delete(made.id, project_id=project).deleted
    with pytest.raises(openai.NotFoundError):
        accounts.retrieve(made.id, project_id=project)
    wait_until(lambda: status(service, made.api_key.value, *ROUTES["GET files"]) == 401, seconds=10)


def test_a_service_account_may_be_made_without_a_key(sdk: openai.OpenAI, project: str) -> None:
    accounts = sdk.admin.organization.projects.service_accounts
    made = accounts.create(project_id=project, name="bare", create_service_account_only=True)
    assert (made.role, made.api_key) == ("none", None)


def test_an_administrators_key_opens_the_admin_routes_until_it_is_deleted(service: Service, sdk: openai.OpenAI) -> None:
    made = sdk.admin.organization.admin_api_keys.create(name="second")
    assert made.value.startswith("sk-weft-admin-")
    with openai.OpenAI(admin_api_key=made.value, base_url=f"{service.url}/v1", max_retries=0) as second:
        assert list(second.admin.organization.projects.list()) is not None
        assert second.admin.organization.admin_api_keys.retrieve(made.id).name == "second"
        assert made.id in {key.id for key in sdk.admin.organization.admin_api_keys.list()}
        assert sdk.admin.organization.admin_api_keys.delete(made.id).deleted
        with pytest.raises(openai.AuthenticationError):
            second.admin.organization.projects.list()
    assert status(service, made.value, *ROUTES["GET files"]) == 401


def test_a_project_is_renamed_and_its_name_stays_unique(sdk: openai.OpenAI, project: str) -> None:
    other = sdk.admin.organization.projects.create(name="taken")
    assert sdk.admin.organization.projects.update(project, name="renamed").name == "renamed"
    with pytest.raises(openai.ConflictError):
        sdk.admin.organization.projects.update(project, name=other.name)


def test_limits_are_shown_and_changed(sdk: openai.OpenAI, service: Service, project: str) -> None:
    api = sdk.admin.organization.projects.rate_limits
    (limit,) = api.list_rate_limits(project_id=project)
    assert limit.max_requests_per_1_minute == service.settings.max_requests_per_minute
    changed = api.update_rate_limit(limit.id, project_id=project, max_requests_per_1_minute=7)
    assert changed.max_requests_per_1_minute == 7
    assert changed.max_tokens_per_1_minute == limit.max_tokens_per_1_minute
    with pytest.raises(openai.NotFoundError):
        api.update_rate_limit("rl-other", project_id=project, max_requests_per_1_minute=7)
    with pytest.raises(openai.BadRequestError):
        api.update_rate_limit(limit.id, project_id=project, max_requests_per_1_minute=-1)


def test_a_spend_limit_is_set_and_taken_away(sdk: openai.OpenAI, project: str) -> None:
    api = sdk.admin.organization.projects.spend_limit
    with pytest.raises(openai.NotFoundError):
        api.retrieve(project)
    assert api.update(project, threshold_amount=500, currency="USD", interval="month").threshold_amount == 500
    assert api.retrieve(project).threshold_amount == 500
    assert api.delete(project).deleted


def test_every_change_is_in_the_audit_log_and_no_value_of_a_key(
    sdk: openai.OpenAI, admin: httpx2.Client, keys: Callable[..., dict], project: str
) -> None:
    made = keys()
    sdk.admin.organization.projects.api_keys.delete(made["id"], project_id=project)
    sdk.admin.organization.projects.rate_limits.update_rate_limit(
        "rl-all-models", project_id=project, max_tokens_per_1_minute=5
    )
    entries = list(sdk.admin.organization.audit_logs.list(project_ids=[project], limit=2))
    assert [entry.type for entry in entries] == [
        "rate_limit.updated",
        "api_key.deleted",
        "api_key.created",
        "api_key.created",
        "project.created",
    ]
    deleted = entries[1]
    assert deleted.api_key_deleted
    assert deleted.api_key_deleted.id == made["id"]
    assert deleted.project
    assert deleted.project.id == project
    assert deleted.actor
    assert deleted.actor.session
    assert deleted.actor.session.ip_address == "127.0.0.1"
    raw = admin.get("/organization/audit_logs", params={"project_ids[]": project}).text
    assert made["value"] not in raw
    assert '"request_id":"req_' in raw


def test_the_audit_log_can_be_narrowed(sdk: openai.OpenAI, keys: Callable[..., dict], project: str) -> None:
    made = keys()
    logs = sdk.admin.organization.audit_logs
    assert [entry.type for entry in logs.list(resource_ids=[made["id"]])] == ["api_key.created"]
    assert list(logs.list(project_ids=[project], event_types=["project.archived"])) == []
    assert list(logs.list(project_ids=[project], effective_at={"lt": 1000})) == []
    assert list(logs.list(project_ids=[project], effective_at={"gte": 1000})) != []


def test_every_route_of_tenants_belongs_to_a_scope(service: Service) -> None:
    """A route that no scope opens could not be given to a key without giving everything."""
    paths = {
        route.path  # type: ignore[attr-defined]
        for route in service.app.routes
        if str(getattr(route, "path", "")).startswith("/v1/") and "organization" not in route.path  # type: ignore[attr-defined]
    }
    assert paths
    assert {path.split("/")[2] for path in paths} <= AREAS.keys() | INFERENCE
