"""Generated requests over the whole API with the keys of two tenants: no 5xx, no id of the other, schemas hold.

FUZZ_CASES in the environment says how many requests at least; `make fuzz-api` sends ten thousand.
"""

import math
import os
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.app import public_routes
from service.openapi.document import document, operations
from tests.service.conftest import Service
from tests.service.contract.conftest import Tenant
from tests.service.contract.matrix import KINDS

CASES = int(os.environ.get("FUZZ_CASES", "300"))
DOCUMENT = document(public_routes())
OPERATIONS = {operation["operationId"]: operation for _, _, operation in operations(DOCUMENT)}
RUNS = [
    (name, mode)
    for name, operation in OPERATIONS.items()
    for mode in GenerationMode
    # There is no wrong way to ask where nothing is asked for.
    if mode is GenerationMode.POSITIVE or operation.keys() & {"parameters", "requestBody"} or operation["security"]
]
# A few more: of some requests there are not so many different ones.
EACH = math.ceil(CASES * 1.05 / len(RUNS))
CHECKS: Any = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
NAMED = {"training_file": "file", "validation_file": "file", "model": "model", "compare": "file", "after": "job"}
"""Members of bodies and queries that name a thing."""
sent: Counter[str] = Counter()
answered: Counter[int] = Counter()


@pytest.fixture(scope="module")
def fuzzed(service: Service) -> Any:
    # Requests made of examples share their parts.
    schema = schemathesis.openapi.from_dict(deepcopy(DOCUMENT))
    schema.config.update(base_url=service.url)
    return schema


@pytest.fixture(scope="module")
def spare(make_project: Callable[[str], tuple[str, str]]) -> str:
    """A project that the administrator's requests may do anything to."""
    return make_project("spare")[0]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "mode"), RUNS)
def test_no_request_breaks_the_contract(
    service: Service, tenants: tuple[Tenant, Tenant], spare: str, fuzzed: Any, name: str, mode: GenerationMode
) -> None:
    admin = OPERATIONS[name]["security"] == [{"AdminKey": []}]
    # Each is the stranger of the other.
    caller, owner = tenants if mode is GenerationMode.POSITIVE else tenants[::-1]
    key = service.settings.admin_key.get_secret_value() if admin else caller.key
    things = st.sampled_from([owner.ids, caller.ids, None])
    # Left out where schemathesis wants to see that, but not so often as it does.
    keyless = st.integers(0, 9).map(lambda drawn: drawn == 9)

    @hypothesis.seed(1)
    @hypothesis.settings(
        max_examples=EACH, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )
    @hypothesis.given(
        case=fuzzed.find_operation_by_id(name).as_strategy(generation_mode=mode), ids=things, keyless=keyless
    )
    def send(case: Case, ids: dict[str, str] | None, keyless: bool) -> None:
        named = _name(case, ids, spare)
        # A job's events as a stream end with the job.
        if isinstance(case.query, dict):
            case.query.pop("stream", None)
        proved = {"authorization": f"Bearer {key}"}
        response = case.call(headers=proved, auth=None if keyless else lambda sent: _proved(sent, proved), timeout=60)
        sent[name] += 1
        answered[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)
        if not admin:
            secret = {value for kind, value in owner.ids.items() if kind != "hook"} | {owner.project, owner.key}
            assert not [value for value in secret - named if value in response.text]

    send()


def _proved(sent: requests.PreparedRequest, headers: dict[str, str]) -> requests.PreparedRequest:
    sent.headers.update(headers)
    return sent


def _name(case: Case, ids: dict[str, str] | None, project: str) -> set[str]:
    """Puts real ids where the request names things; gives those that it names now."""
    # Cases that were made of an example share it with each other.
    case.path_parameters, case.query, case.body = map(deepcopy, (case.path_parameters, case.query, case.body))
    if ids is None:
        return set()
    named: set[str] = set()
    for part, kinds in ((case.path_parameters, KINDS), (case.query, NAMED), (case.body, NAMED)):
        for parameter, kind in kinds.items():
            if isinstance(part, dict) and parameter in part:
                part[parameter] = ids[kind]
                named.add(ids[kind])
    if isinstance(case.path_parameters, dict) and "project_id" in case.path_parameters:
        case.path_parameters["project_id"] = project
    # A checkpoint's name has its model's name in it.
    return named | ({ids["model"]} if ids["checkpoint model"] in named else set())


def test_as_many_as_asked_for() -> None:
    total = sent.total()
    print(f"{total} generated requests to {len(sent)} of {len(OPERATIONS)} operations, answered {dict(answered)}")
    assert set(sent) == set(OPERATIONS)
    assert total >= CASES
