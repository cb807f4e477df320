"""Every operation does what its example in the document says, and its answer fits the schema there."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from jsonschema import Draft202012Validator

from service.app import public_routes
from service.openapi.document import document, operations
from tests.service.contract.conftest import Makers
from tests.service.contract.walk import FORMS, Walk

DOCUMENT = document(public_routes())
OPERATIONS = list(operations(DOCUMENT))
REFUSED = {"create_embedding": 400}
"""What no base can do, and says so."""
RECORD = os.environ.get("WALK_RECORD")


@pytest.fixture(scope="module")
def walk(makers: Makers, admin: httpx2.Client, make_project: Callable[[str], tuple[str, str]]) -> Walk:
    tenant, maker = makers("walks")
    return Walk(tenant, maker, admin, make_project("beside")[0])


@pytest.mark.parametrize(
    ("path", "method", "operation"), OPERATIONS, ids=[operation["operationId"] for _, _, operation in OPERATIONS]
)
def test_an_operation_answers_its_example(walk: Walk, path: str, method: str, operation: dict[str, Any]) -> None:
    name = operation["operationId"]
    # A POST happens once under its key: each one, without exception. What was refused is asked anew.
    answer, *again = walk.ask(path, method, operation, *[f"walk-{name}"] * (2 if method == "post" else 1))
    assert answer.status_code == REFUSED.get(name, 200), answer.text
    for repeated in again:
        assert (repeated.status_code, repeated.content) == (answer.status_code, answer.content)
        assert ("idempotent-replayed" in repeated.headers) == (name not in REFUSED)
    if again and name not in REFUSED:
        _reuse(name, answer.request)
    kind = answer.headers["content-type"]
    if kind != "application/json":
        assert kind in operation["responses"]["200"]["content"]
        return
    if name not in REFUSED:
        schema = operation["responses"]["200"]["content"][kind]["schema"]
        Draft202012Validator({"components": DOCUMENT["components"], **schema}).validate(answer.json())
        _record(name, answer.json())


def _reuse(name: str, request: httpx2.Request) -> None:
    """Another request under the same key, by the stock client."""
    headers = {each: request.headers[each] for each in ("authorization", "idempotency-key")}
    if name in FORMS:
        headers["content-type"] = "multipart/form-data"
        files = {
            field: (filename, held.replace(b"2+2", b"1+3")) for field, (filename, held) in FORMS[name]["files"].items()
        }
        other = {"files": files, "body": FORMS[name].get("data")}
    else:
        headers["content-type"] = "application/json"
        other = {"content": request.read() + b" "}
    with openai.OpenAI(api_key="none", max_retries=0) as client, pytest.raises(openai.UnprocessableEntityError) as bad:
        client.post(str(request.url), cast_to=object, options={"headers": headers}, **other)
    assert bad.value.code == "idempotency_key_reused"
    assert bad.value.request_id


def _record(name: str, answer: Any) -> None:
    if RECORD is not None:
        path = Path(RECORD)
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | {name: answer}))
