"""One request to every operation of the API, as its example in the document has it, with ids that exist.

`python -m pytest tests/service/contract/test_walk.py` holds the answers to the document; with WALK_RECORD set to a
file's name it writes the answers there, from which the document's examples are taken.
"""

import json
import re
import time
from collections.abc import Callable
from typing import Any

import httpx2

from service.openapi.document import examples
from tests.service.contract.compatibility import LINES
from tests.service.contract.conftest import Maker, Tenant

FORMS: dict[str, Any] = {
    "create_file": {"data": {"purpose": "fine-tune"}, "files": {"file": ("train.jsonl", LINES)}},
    "create_part": {"files": {"data": ("data", LINES)}},
}
QUERIES = {name: {"start_time": "now"} for name in ("completions", "fine_tuning", "storage", "list_costs")}
JOBS = {"cancel_job": "queued_job", "pause_job": "queued_job", "resume_job": "paused_job"}


class Walk:
    """Requests of one tenant and of the administrator, each with new things where it uses them up."""

    def __init__(self, tenant: Tenant, maker: Maker, admin: httpx2.Client, other: str) -> None:
        self._tenant, self._maker, self._admin, self._other = tenant, maker, admin, other
        self._parents: dict[str, str] = {}

    def ask(self, path: str, method: str, operation: dict[str, Any], *keys: str) -> list[httpx2.Response]:
        """The same request under each of these `Idempotency-Key`s."""
        name = operation["operationId"]
        self._parents = {}
        filled = re.sub(r"{(\w+)}", lambda match: self._named(match[1], name), path)
        client = self._admin if operation["security"] == [{"AdminKey": []}] else self._maker.http
        options: dict[str, Any] = dict(FORMS.get(name, {}))
        if name in QUERIES:
            options["params"] = {"start_time": int(time.time()) - 3600}
        if "requestBody" in operation and not options:
            options["json"] = self._body(examples()[name]["request"])
        url = client.base_url.copy_with(path=filled)
        headers = ({"idempotency-key": key} for key in keys)
        return [client.request(method.upper(), url, headers=header, **options) for header in headers]

    def _named(self, parameter: str, operation: str) -> str:
        made = self._thing(parameter, operation)
        self._parents[parameter] = made
        return made

    def _thing(self, parameter: str, operation: str) -> str:
        ids = self._tenant.ids
        new: dict[str, Callable[[], str]] = {
            "file_id": self._maker.file,
            "upload_id": self._maker.upload,
            "fine_tuning_job_id": lambda: getattr(self._maker, JOBS[operation])() if operation in JOBS else ids["job"],
            "model": lambda: self._maker.trained()[1] if operation == "delete_model" else ids["model"],
            "fine_tuned_model_checkpoint": lambda: ids["model"],
            "webhook_endpoint_id": lambda: ids["endpoint"] if "deliver" in operation else self._maker.endpoint(),
            "webhook_delivery_id": lambda: ids["delivery"],
            "permission_id": lambda: self._permission(operation),
            "project_id": self._project,
            "api_key_id": lambda: self._made("api_keys", name="ci"),
            "account_id": lambda: self._made("service_accounts", name="ci"),
            "rate_limit_id": lambda: "rl-all-models",
            "key_id": lambda: self._admin.post("/organization/admin_api_keys", json={"name": "ci"}).json()["id"],
            "batch_id": self._maker.batch,
            "adapter": lambda: self._maker.adapter(ids["model"]),
            "import_id": self._maker.adapter_import,
            "export_id": lambda: ids["export"],
            "evaluation_id": lambda: self._maker.evaluation(self._parents["adapter"]),
            "path": lambda: "adapter_config.json",
            "version": lambda: "3" if operation == "delete_version" else "v1",
            "alias": lambda: "default",
        }
        return new[parameter]()

    def _permission(self, operation: str) -> str:
        if "adapter" in operation:
            return self._maker.adapter_permission(self._parents["adapter"], self._other)
        return self._maker.permission(self._tenant.ids["model"], self._other)

    def _project(self) -> str:
        project = self._admin.post("/organization/projects", json={"name": f"walk-{time.monotonic_ns()}"}).json()["id"]
        for part, body in (("api_keys", {"name": "ci"}), ("service_accounts", {"name": "ci"})):
            self._admin.post(f"/organization/projects/{project}/{part}", json=body).raise_for_status()
        self._admin.post(f"/organization/projects/{project}/spend_limit", json={"threshold_amount": 100})
        return project

    def _made(self, part: str, **body: str) -> str:
        project = self._parents["project_id"]
        return self._admin.post(f"/organization/projects/{project}/{part}", json=body).json()["id"]

    def _body(self, example: dict[str, Any]) -> dict[str, Any]:
        real: dict[str, Callable[[], Any]] = {
            "training_file": self._maker.file,
            "file_id": self._maker.file,
            "validation_file": self._maker.file,
            "input_file_id": self._maker.batch_file,
            "project_ids": lambda: [self._other],
            "part_ids": lambda: [self._maker.part(self._parents["upload_id"])],
            "url": lambda: self._tenant.ids["hook"],
            "files": self._maker.adapter_files,
            "from": lambda: {"type": "model", "model": self._tenant.ids["model"]},
            "source": lambda: {"type": "model", "model": self._tenant.ids["model"]},
        }
        body = json.loads(json.dumps(example))
        return {name: real[name]() if name in real else value for name, value in body.items()}
