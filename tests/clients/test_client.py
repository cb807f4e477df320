"""The SDK's clients: where they look for an address and a key, what they keep from others, and what they send."""

import subprocess
import sys
from typing import Any

import httpx2
import openai
import pytest

from weft import AsyncWeft, Weft
from weft.client import DEFAULT_BASE_URL

URL = "http://127.0.0.1:1/v1/"
KINDS = pytest.mark.parametrize("kind", [Weft, AsyncWeft])
OTHERS = {
    "OPENAI_API_KEY": "sk-other",
    "OPENAI_ADMIN_KEY": "sk-other-admin",
    "OPENAI_BASE_URL": "http://127.0.0.1:2/v1/",
    "OPENAI_ORG_ID": "org-other",
    "OPENAI_PROJECT_ID": "proj_other",
    "OPENAI_WEBHOOK_SECRET": "whsec_other",
    "OPENAI_CUSTOM_HEADERS": "Authorization: Bearer sk-other-header\nX-Other: 1",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in OTHERS.items():
        monkeypatch.setenv(variable, value)
    for variable in ("WEFT_API_KEY", "WEFT_ADMIN_KEY", "WEFT_BASE_URL", "WEFT_WEBHOOK_SECRET"):
        monkeypatch.delenv(variable, raising=False)


def answering(*answers: httpx2.Response) -> tuple[httpx2.Client, list[httpx2.Request]]:
    """A transport that gives these answers in turn, and what it was asked."""
    waiting, asked = list(answers), list[httpx2.Request]()

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return waiting.pop(0)

    return httpx2.Client(transport=httpx2.MockTransport(answer)), asked


@KINDS
def test_reads_its_own_variables(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_BASE_URL", URL)
    monkeypatch.setenv("WEFT_API_KEY", "sk-weft-mine")
    monkeypatch.setenv("WEFT_ADMIN_KEY", "sk-weft-admin")
    monkeypatch.setenv("WEFT_WEBHOOK_SECRET", "whsec_mine")
    made = kind()
    assert (str(made.base_url), made.api_key, made.admin_api_key) == (URL, "sk-weft-mine", "sk-weft-admin")
    assert made.webhook_secret == "whsec_mine"


@KINDS
def test_the_address_of_a_local_service_is_the_default(kind: Any) -> None:
    assert str(kind(api_key="sk-weft-mine").base_url) == DEFAULT_BASE_URL + "/"


@KINDS
def test_no_key_is_an_error_that_names_the_variables(kind: Any) -> None:
    with pytest.raises(openai.OpenAIError, match=r"WEFT_API_KEY.*WEFT_ADMIN_KEY"):
        kind()


@KINDS
@pytest.mark.parametrize("copied", [False, True])
def test_nothing_of_another_vendor_is_used(kind: Any, copied: bool) -> None:
    made = kind(api_key="sk-weft-mine")
    made = made.with_options(timeout=3) if copied else made
    assert (made.organization, made.project, made.admin_api_key, made.webhook_secret) == (None, None, None, None)
    assert not [value for value in made.default_headers.values() if "other" in str(value)]
    assert "X-Other" not in made.default_headers
    assert made.auth_headers == {"Authorization": "Bearer sk-weft-mine"}


def test_an_administrator_without_a_project_sends_no_other_key() -> None:
    http, asked = answering(
        httpx2.Response(200, json={"id": "proj_1", "name": "a", "created_at": 1, "status": "active"})
    )
    Weft(admin_api_key="sk-weft-admin", http_client=http).projects.retrieve("proj_1")
    assert asked[0].headers["authorization"] == "Bearer sk-weft-admin"
    assert not [value for value in asked[0].headers.values() if "other" in value]


def test_the_administrators_key_goes_to_administrators_routes_only() -> None:
    page = {"object": "list", "data": [], "has_more": False}
    http, asked = answering(httpx2.Response(200, json=page), httpx2.Response(200, json=page))
    client = Weft(api_key="sk-weft-mine", admin_api_key="sk-weft-admin", http_client=http)
    client.projects.list()
    client.adapters.list()
    assert [request.headers["authorization"] for request in asked] == ["Bearer sk-weft-admin", "Bearer sk-weft-mine"]


@KINDS
def test_arguments_win_and_options_survive_a_copy(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_API_KEY", "sk-weft-environment")
    made = kind(api_key="sk-weft-argument", base_url=URL, max_retries=7, default_headers={"X-Mine": "1"})
    copy = made.with_options(timeout=3)
    assert isinstance(copy, kind)
    assert (copy.api_key, str(copy.base_url), copy.max_retries, copy.timeout) == ("sk-weft-argument", URL, 7, 3)
    assert copy.default_headers["X-Mine"] == "1"


def test_a_change_keeps_its_idempotency_key_over_retries_and_the_next_has_another() -> None:
    failed = httpx2.Response(503, json={"error": {"message": "later"}}, headers={"retry-after-ms": "1"})
    made = httpx2.Response(200, json={"id": "ftjob-1", "object": "fine_tuning.job", "status": "queued"})
    http, asked = answering(failed, failed, made, made)
    client = Weft(api_key="sk-weft-mine", http_client=http)
    client.fine_tuning.jobs.create(model="m", training_file="file-1")
    client.fine_tuning.jobs.create(model="m", training_file="file-1")
    keys = [request.headers["idempotency-key"] for request in asked]
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_a_question_has_no_idempotency_key_and_a_callers_own_key_wins() -> None:
    job = httpx2.Response(200, json={"id": "ftjob-1", "object": "fine_tuning.job", "status": "queued"})
    http, asked = answering(job, job)
    client = Weft(api_key="sk-weft-mine", http_client=http).with_options(timeout=3)
    client.fine_tuning.jobs.retrieve("ftjob-1")
    client.fine_tuning.jobs.cancel("ftjob-1", extra_headers={"Idempotency-Key": "mine"})
    assert "idempotency-key" not in asked[0].headers
    assert asked[1].headers["idempotency-key"] == "mine"


def test_unknown_statuses_and_fields_are_kept() -> None:
    http, _ = answering(httpx2.Response(200, json={"id": "ftjob-1", "status": "melting", "news": {"a": 1}}))
    job = Weft(api_key="sk-weft-mine", http_client=http).fine_tuning.jobs.retrieve("ftjob-1")
    assert job.status == "melting"
    assert job.to_dict()["news"] == {"a": 1}


def test_names_are_quoted_into_addresses() -> None:
    http, asked = answering(httpx2.Response(200, json={"id": "adapter-1", "name": "a"}))
    Weft(api_key="sk-weft-mine", http_client=http).adapters.retrieve("../files?x=/")
    assert asked[0].url.raw_path == b"/v1/adapters/..%2Ffiles%3Fx%3D%2F"


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_what_is_no_name_is_not_asked_for(name: str) -> None:
    http, asked = answering()
    with pytest.raises(ValueError, match="no id or name"):
        Weft(api_key="sk-weft-mine", http_client=http).adapters.retrieve(name)
    assert not asked


def test_importing_loads_no_resource_before_it_is_used() -> None:
    code = "import sys, openai; before = set(sys.modules); import weft; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == ["weft"]
