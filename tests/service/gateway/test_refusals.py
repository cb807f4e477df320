"""What the gateway refuses itself, what it says of a replica's refusals, and that neither tells of other tenants."""

import json
from typing import Any

import httpx2
import pytest
from aiohttp import web
from sqlalchemy import text

from service.adapters.registry import retire
from tests.conftest import wait_until
from tests.service.conftest import Service
from tests.service.gateway.captured import BAD_TEMPERATURE, FAILED_EVENT, TOO_LONG, UNKNOWN_MODEL
from tests.service.gateway.conftest import BASE, Tenant, beat, chat, make_tenant
from tests.service.gateway.upstream import Upstream
from tests.service.stage import Stage


def error(answer: httpx2.Response) -> dict[str, Any]:
    body = answer.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    return body


def test_unknown_foreign_and_deleted_models_are_one_and_the_same_404(
    upstream: Upstream, http: httpx2.Client, service: Service, stage: Stage, neighbour: Tenant
) -> None:
    doomed = service.call(make_tenant(stage))

    async def delete() -> None:
        async with service.resources.database.tenant(doomed.project) as session:
            await retire(session, doomed.project, doomed.model)

    own = {"authorization": f"Bearer {doomed.key}"}
    assert http.post("/chat/completions", json=chat(doomed.model), headers=own).status_code == 200
    service.call(delete())
    wait_until(
        lambda: http.post("/chat/completions", json=chat(doomed.model), headers=own).status_code == 404,
        what="a deleted model is gone",
    )

    def refused(name: str, **headers: Any) -> dict[str, Any]:
        answer = http.post("/chat/completions", json=chat(name), **headers)
        assert answer.status_code == 404
        return {**error(answer), "message": error(answer)["message"].replace(name, "NAME")}

    asked = len(upstream.bodies)
    answers = [refused("ft:weft-tiny:acme:x:AAAAAAAA"), refused(neighbour.model), refused(doomed.model, headers=own)]
    # Adapter ids are no names, and neither is what no database could hold.
    answers += [refused(neighbour.adapter), refused("a\0b"), refused("x" * 200)]
    assert answers == [answers[0]] * 6
    assert answers[0]["code"] == "model_not_found"
    assert "does not exist or you do not have access to it" in answers[0]["message"]
    assert len(upstream.bodies) == asked


def test_a_key_that_is_missing_wrong_or_revoked_gets_nowhere(
    upstream: Upstream, http: httpx2.Client, service: Service, stage: Stage
) -> None:
    def status(authorization: str) -> int:
        answer = http.post("/chat/completions", json=chat(BASE), headers={"authorization": authorization})
        if answer.status_code == 401:
            assert error(answer)["code"] == "invalid_api_key"
        return answer.status_code

    tenant = service.call(make_tenant(stage))
    assert status(f"Bearer {tenant.key}") == 200
    assert [status(""), status("Basic abc"), status(f"Bearer {tenant.key[:-1]}x"), status("Bearer sk-weft-x")] == [
        401
    ] * 4
    admin = service.settings.admin_key.get_secret_value()
    assert status(f"Bearer {admin}") == 401

    async def revoke() -> None:
        async with service.resources.database.control() as session:
            await session.execute(
                text("update api_keys set revoked_at = now() where project_id = :project"), {"project": tenant.project}
            )
            await session.execute(text("select pg_notify('weft', 'key')"))

    service.call(revoke())
    wait_until(lambda: status(f"Bearer {tenant.key}") == 401, seconds=5, what="a revoked key is refused")


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'{"model": NaN}', b"\xff", b'{"messages": []}', b'{"model": 7, "messages": []}', b"[" * 100_000],
)
def test_a_body_that_is_no_completion_request_is_400(upstream: Upstream, http: httpx2.Client, body: bytes) -> None:
    answer = http.post("/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert error(answer)["type"] == "invalid_request_error"
    assert upstream.bodies == []


def test_other_content_types_encodings_sizes_and_methods_are_refused(upstream: Upstream, http: httpx2.Client) -> None:
    body = json.dumps(chat(BASE)).encode()

    def status(content: Any, **headers: str) -> int:
        headers = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return http.post("/chat/completions", content=content, headers=headers).status_code

    assert status(body, content_type="text/plain") == 415
    assert status(body, content_encoding="gzip") == 415
    assert status(body, content_type="application/json; charset=utf-8") == 200
    large = json.dumps(chat(BASE, stop="x" * (5 << 20))).encode()
    assert status(large) == 413
    # Without a declared length the bytes are counted as they come.
    assert status(iter([large[:1000], large[1000:]])) == 413
    assert http.get("/chat/completions").status_code == 405
    assert len(upstream.bodies) == 1


def test_an_unexpected_failure_is_a_500_without_its_cause(
    service: Service, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("the secret cause")

    monkeypatch.setattr(service.app.state.gateway.resolver, "target", broken)
    answer = http.post("/chat/completions", json=chat(BASE), headers={"x-request-id": "of-the-500"})
    assert (answer.status_code, error(answer)["type"]) == (500, "server_error")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "of-the-500"


def test_replicas_refusals_come_in_openais_words(upstream: Upstream, http: httpx2.Client, tenant: Tenant) -> None:
    def refused(status: int, body: bytes, **headers: str) -> httpx2.Response:
        async def answer(request: web.Request, asked: dict[str, Any]) -> web.Response:
            return web.Response(status=status, body=body, content_type="application/json", headers=headers)

        upstream.script = answer
        return http.post("/chat/completions", json=chat(tenant.model))

    long = refused(400, TOO_LONG)
    assert (long.status_code, error(long)["code"]) == (400, "context_length_exceeded")
    hot = refused(400, BAD_TEMPERATURE)
    assert (error(hot)["type"], error(hot)["param"]) == ("invalid_request_error", "temperature")
    problem = {
        "message": f"Adapter {tenant.adapter} does not fit.",
        "type": "x",
        "param": None,
        "code": "adapter_invalid",
    }
    invalid = refused(422, json.dumps({"error": problem}).encode())
    assert (invalid.status_code, error(invalid)["code"]) == (422, "adapter_invalid")
    assert error(invalid)["message"] == f"Adapter {tenant.model} does not fit."
    busy = refused(503, json.dumps({"error": {**problem, "code": "no_capacity"}}).encode(), **{"Retry-After": "7"})
    assert (busy.status_code, error(busy)["code"], busy.headers["retry-after"]) == (503, "no_capacity", "7")
    # vLLM names every adapter that it knows.
    lost = refused(404, UNKNOWN_MODEL)
    assert lost.status_code == 503
    assert "0123456789abcdef" not in lost.text


def test_a_stream_that_fails_before_its_first_event_is_an_http_error(
    upstream: Upstream, http: httpx2.Client, tenant: Tenant
) -> None:
    async def answer(request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        failed = FAILED_EVENT if asked["model"] == BASE else b"data: " + TOO_LONG + b"\n\n"
        return await upstream.stream(request, [failed.replace(b'{"error":', b'{"error": '), b"data: [DONE]\n\n"])

    upstream.script = answer
    long = http.post("/chat/completions", json=chat(tenant.model, stream=True))
    assert (long.status_code, error(long)["code"]) == (400, "context_length_exceeded")
    failed = http.post("/chat/completions", json=chat(BASE, stream=True))
    assert failed.status_code == 503
    assert failed.headers["retry-after"]


def test_without_a_ready_replica_the_answer_says_so(
    upstream: Upstream, http: httpx2.Client, service: Service, tenant: Tenant
) -> None:
    beat(service, upstream, "starting")
    answer = http.post("/chat/completions", json=chat(tenant.model))
    assert (answer.status_code, error(answer)["code"]) == (503, "no_replica")
    assert float(answer.headers["retry-after"]) > 0
    assert "starting" in error(answer)["message"]
