"""Every place where a tenant's request can name a thing, and what is answered to another tenant's and to unknown ids.

The places in paths come from the API's own document; those in queries and bodies are listed.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx2

from service.app import public_routes
from service.openapi.document import document, operations
from tests.service.contract.compatibility import LINES
from tests.service.contract.conftest import BASE, Tenant

KINDS = {
    "project_id": "project",
    "fine_tuned_model_checkpoint": "model",
    "file_id": "file",
    "upload_id": "upload",
    "fine_tuning_job_id": "job",
    "model": "model",
    "webhook_endpoint_id": "endpoint",
    "webhook_delivery_id": "delivery",
    "batch_id": "batch",
    "adapter": "adapter",
    "import_id": "import",
    "export_id": "export",
    "evaluation_id": "evaluation",
}
"""The kind of thing that a parameter of a path names."""
PARTS = {
    "version": "v1",
    "alias": "default",
    "path": "adapter_config.json",
    "permission_id": "cp_1",
    "api_key_id": "key_1",
    "account_id": "svc_1",
    "rate_limit_id": "rl-all-models",
}
"""Parameters that name a part of the thing beside them, and are the same for everybody."""

UNKNOWN = {
    "project": "proj_" + "0" * 24,
    "file": "file-" + "0" * 24,
    "job": "ftjob-" + "0" * 24,
    "model": f"ft:{BASE}:weft::" + "0" * 8,
    "checkpoint model": f"ft:{BASE}:weft::{'0' * 8}:ckpt-step-1",
    "event": "ftevent-" + "0" * 24,
    "checkpoint": "ftckpt_" + "0" * 24,
    "upload": "upload_" + "0" * 24,
    "part": "part_" + "0" * 24,
    "endpoint": "we_" + "0" * 24,
    "delivery": "whd_" + "0" * 24,
    "batch file": "file-" + "0" * 24,
    "batch": "batch_" + "0" * 24,
    "adapter": "bot-" + "0" * 12,
    "registered adapter": "adapter-" + "0" * 24,
    "version": "adpv-" + "0" * 24,
    "change": "adpc-" + "0" * 24,
    "import": "adimp-" + "0" * 24,
    "export": "adexp-" + "0" * 24,
    "evaluation": "adev-" + "0" * 24,
}
MESSAGES = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "complete_upload": {"json": {"part_ids": [UNKNOWN["part"]]}},
    "create_part": {"files": {"data": ("data", LINES)}},
    "change_endpoint": {"json": {"name": "taken"}},
    "change_endpoint_by_patch": {"json": {"name": "taken"}},
    "test_endpoint": {"json": {"event_type": "fine_tuning.job.succeeded"}},
    "change_adapter": {"json": {"description": "taken"}},
    "add_version": {"json": {"source": {"type": "model", "model": "{own model}"}}},
    "set_alias": {"json": {"version": 1}},
    "roll_back": {"json": {}},
    "create_export": {"json": {"format": "peft"}},
    "create_evaluation": {"json": {"version": 1, "file_id": "{own file}", "grader": {"type": "exact_match"}}},
}
"""What the routes need beside the id, so that nothing else is wrong with the request."""


@dataclass(frozen=True)
class Place:
    """`{id}` in the path, the query or the body is the thing's; `{own}` is the caller's own file, job or upload."""

    method: str
    path: str
    kind: str
    options: tuple[tuple[str, Any], ...] = ()
    status: int = 404

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.kind} {dict(self.options).keys() - {'files'} or ''}"


def places() -> list[Place]:
    return [*_in_paths(), *IN_QUERIES, *IN_BODIES, *IN_HEADERS]


def _in_paths() -> Iterator[Place]:
    for path, method, operation in operations(document(public_routes())):
        options = tuple(BODIES.get(operation["operationId"], {}).items())
        # The administrator's routes know no tenant, whatever one asks them for.
        status = 401 if operation["security"] == [{"AdminKey": []}] else 404
        for name in (name for name in re.findall(r"{(\w+)}", path) if name in KINDS):
            # Of several, the others are the caller's own.
            named = re.sub(r"{(\w+)}", lambda match, name=name: _slot(match[1], name), path)
            for kind in [KINDS[name]] + (["checkpoint model", "adapter"] if name == "model" else []):
                yield Place(method.upper(), named.removeprefix("/v1"), kind, options, status)


def _slot(name: str, asked: str) -> str:
    return "{id}" if name == asked else PARTS.get(name) or "{own " + KINDS[name] + "}"


def _json(**fields: Any) -> tuple[tuple[str, Any], ...]:
    return (("json", fields),)


def _query(**fields: Any) -> tuple[tuple[str, Any], ...]:
    return (("params", fields),)


PROMPTS = {
    "/chat/completions": {"messages": MESSAGES},
    "/completions": {"prompt": "Hi"},
    "/responses": {"input": "Hi"},
}
MODELS = (
    ("model", "{id}"),
    ("checkpoint model", "{id}"),
    ("adapter", "{id}"),
    ("adapter", "{id}@default"),
    ("adapter", "{id}@v1"),
    ("registered adapter", "{id}"),
    ("version", "{id}"),
    ("job", "{id}"),
    ("checkpoint", "{id}"),
)
"""What may be tried where a model is named."""
JOB = {"object": "fine_tuning.job", "model": "gpt-4.1-nano"}
JOBS, ESTIMATES = "/fine_tuning/jobs", "/fine_tuning/estimates"
UNKNOWN_FILES = dict.fromkeys(("adapter_config.json", "adapter_model.safetensors"), UNKNOWN["file"])
JUDGE = {"type": "score_model", "input": MESSAGES}
IN_QUERIES = [
    Place("GET", "/files", "file", _query(after="{id}"), 400),
    Place("GET", JOBS, "job", _query(after="{id}"), 400),
    Place("GET", JOBS + "/{own job}/events", "event", _query(after="{id}"), 400),
    Place("GET", JOBS + "/{id}/events", "job", _query(stream="true")),
    Place("GET", JOBS + "/{own job}/events", "event", _query(stream="true", after="{id}"), 400),
    Place("GET", JOBS + "/{own job}/checkpoints", "checkpoint", _query(after="{id}"), 400),
    Place("GET", "/batches", "batch", _query(after="{id}"), 400),
    Place("GET", "/webhook_endpoints", "endpoint", _query(after="{id}"), 400),
    Place("GET", "/webhook_endpoints/{own endpoint}/deliveries", "delivery", _query(after="{id}"), 400),
    Place("GET", "/adapters", "registered adapter", _query(after="{id}"), 400),
    Place("GET", "/adapters/{own adapter}/versions", "version", _query(after="{id}"), 400),
    Place("GET", "/adapters/imports", "import", _query(after="{id}"), 400),
    Place("GET", "/adapters/{own adapter}/history", "change", _query(after="{id}"), 400),
    Place("GET", "/adapters/{own adapter}/evaluations", "evaluation", _query(after="{id}"), 400),
    Place("GET", "/files/{own file}/validation", "file", _query(compare="{id}")),
]
IN_BODIES = [
    *(
        Place("POST", path, kind, _json(**fields), status)
        for path in (JOBS, ESTIMATES)
        for kind, fields, status in (
            ("file", {"model": BASE, "training_file": "{id}"}, 400),
            ("file", {"model": BASE, "training_file": "{own file}", "validation_file": "{id}"}, 400),
            *((kind, {"model": name, "training_file": "{own file}"}, 404) for kind, name in MODELS),
            # A name for the caller's own: another's adapter of this name is nothing to it.
            ("adapter", {"model": BASE, "training_file": "{own file}", "adapter": "{id}", "dry_run": True}, 200),
        )
    ),
    Place("POST", "/adapters", "adapter", _json(name="{id}", **{"from": {"type": "job", "job_id": UNKNOWN["job"]}})),
    Place("POST", "/adapters/imports", "adapter", _json(adapter="{id}", files=UNKNOWN_FILES), 400),
    *(
        Place("POST", "/adapters/imports", "file", _json(adapter="bot-new", files=files), 400)
        for files in (
            {"adapter_config.json": "{id}", "adapter_model.safetensors": "{own file}"},
            {"adapter_config.json": "{own adapter file}", "adapter_model.safetensors": "{id}"},
        )
    ),
    *(
        Place(
            "POST",
            path,
            kind,
            _json(
                model=BASE,
                training_file="{own file}",
                validation_file="{own other file}",
                on_success={"adapter": "bot-new", "alias": "prod", "evaluation": evaluation},
            ),
            status,
        )
        for path in (JOBS, ESTIMATES)
        for kind, evaluation, status in (
            ("file", {"file_id": "{id}"}, 400),
            *((kind, {"grader": JUDGE | {"model": name}}, 404) for kind, name in MODELS),
        )
    ),
    *(
        Place("POST", "/adapters/{own adapter}/evaluations", kind, _json(version=1, **body), status)
        for kind, body, status in (
            ("file", {"file_id": "{id}", "grader": {"type": "exact_match"}}, 400),
            *((kind, {"file_id": "{own file}", "grader": JUDGE | {"model": name}}, 404) for kind, name in MODELS),
        )
    ),
    Place("POST", "/fine_tuning/imports", "file", _json(job=JOB, training_file="{id}", model=BASE), 400),
    Place(
        "POST",
        "/fine_tuning/imports",
        "file",
        _json(job=JOB, training_file="{own file}", validation_file="{id}", model=BASE),
        400,
    ),
    *(
        Place("POST", "/fine_tuning/imports", kind, _json(job=JOB, training_file="{own file}", model=name))
        for kind, name in MODELS
    ),
    Place(
        "POST",
        "/batches",
        "batch file",
        _json(input_file_id="{id}", endpoint="/v1/chat/completions", completion_window="24h"),
    ),
    Place("POST", "/uploads/{own upload}/complete", "part", _json(part_ids=["{id}"]), 400),
    *(
        Place("POST", path, kind, _json(model=name, **prompt))
        for path, prompt in (PROMPTS | {"/embeddings": {"input": "Hi"}}).items()
        for kind, name in MODELS
    ),
    *(
        Place("POST", path, kind, _json(model="{id}", stream=True, **prompt))
        for path, prompt in PROMPTS.items()
        for kind in ("model", "adapter")
    ),
    *(
        Place("POST", path, kind, _json(**{**beside, member: {"type": source, name: "{id}"}}))
        for path, member, beside in (
            ("/adapters", "from", {"name": "bot-new"}),
            ("/adapters/{own adapter}/versions", "source", {}),
        )
        for kind, source, name in (
            ("job", "job", "job_id"),
            ("checkpoint", "checkpoint", "checkpoint_id"),
            ("model", "model", "model"),
            ("checkpoint model", "model", "model"),
            ("adapter", "model", "model"),
        )
    ),
]
IN_HEADERS = [
    # OpenAI's clients can name a project. The key alone says which it is.
    Place("GET", "/files/{own file}", "project", (("headers", {"openai-project": "{id}"}),), 200),
]


def ask(url: str, caller: Tenant, place: Place, value: str) -> tuple[int, str]:
    """Status and body, with the asked id taken out of it."""
    options: dict[str, Any] = {name: _filled(given, caller, value) for name, given in place.options}
    headers = {"authorization": f"Bearer {caller.key}"} | options.pop("headers", {})
    answer = _client().request(
        place.method, f"{url}/v1{_filled(place.path, caller, value)}", headers=headers, **options
    )
    assert answer.headers["x-request-id"]
    return answer.status_code, answer.text.replace(value, "{id}")


@cache
def _client() -> httpx2.Client:
    """One for all: each new one reads all certificates of this machine."""
    return httpx2.Client(timeout=60)


def _filled(given: Any, caller: Tenant, value: str) -> Any:
    match given:
        case str():
            return re.sub(r"{own ([\w ]+)}", lambda match: caller.ids[match[1]], given).replace("{id}", value)
        case dict():
            return {name: _filled(item, caller, value) for name, item in given.items()}
        case list():
            return [_filled(item, caller, value) for item in given]
        case _:
            return given


def leaks(url: str, caller: Tenant, owner: Tenant, place: Place) -> str | None:
    """What is wrong with the answer to the owner's id, or None."""
    foreign = ask(url, caller, place, owner.ids[place.kind])
    unknown = ask(url, caller, place, UNKNOWN[place.kind])
    if foreign != unknown:
        return f"{place}: {foreign} is not {unknown}"
    coded = foreign[0] == 200 or json.loads(foreign[1])["error"]["code"]
    return None if foreign[0] == place.status and coded else f"{place}: {foreign}"
