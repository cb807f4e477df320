"""The admin API of a running stack, for the commands on its own machine; over HTTP only."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from deploy.local.folder import DataFolder, StackError

TIMEOUT_SECONDS = 20
CONFLICT = 409

# The stack listens on loopback; a proxy meant for the outside must not be asked.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class Refused(StackError):
    """The service would not do it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the service answered {status}: {message}")
        self.status = status


@dataclass(frozen=True)
class Admin:
    url: str
    key: str

    @classmethod
    def of(cls, data: DataFolder) -> "Admin":
        """For the stack that runs on a data folder. Raises StackError where none does."""
        if data.holder() is None or not data.admin_key.exists():
            raise StackError(f"nothing runs on {data.root}; start it first: weftd up --data {data.root}")
        return cls(f"http://127.0.0.1:{data.remembered_ports()['service']}", data.admin_key.read_text().strip())

    def create_key(self, project: str, name: str = "weftd") -> str:
        """A new key of the project of that name, which is made if there is none."""
        project_id = self._find_project(project) or self._make_project(project)
        return self._call("POST", f"/projects/{project_id}/api_keys", {"name": name})["value"]

    def _make_project(self, name: str) -> str:
        try:
            return self._call("POST", "/projects", {"name": name})["id"]
        except Refused as refused:
            # Somebody else made it since it was looked for; an archived one keeps its name and is refused for good.
            found = self._find_project(name) if refused.status == CONFLICT else None
            if found is None:
                raise
            return found

    def _find_project(self, name: str) -> str | None:
        found = self._call("GET", f"/projects?name={quote(name, safe='')}")["data"]
        return found[0]["id"] if found else None

    def _call(self, method: str, path: str, body: Mapping[str, str] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}/v1/organization{path}",
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        try:
            with _open(request, timeout=TIMEOUT_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Refused(error.code, _message(error)) from error
        except OSError as error:
            raise StackError(f"the service at {self.url} does not answer ({error}); is it ready yet?") from error


def _message(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    try:
        return json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return text[:200]
