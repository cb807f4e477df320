"""What this process counts of its own work, as plain numbers. How they are shown is `service.monitoring`.

Labels are bounded: routes are templates, reasons are codes of ours, and of projects a few have numbers of their own.
"""

from collections import Counter
from dataclasses import dataclass

from starlette.types import Scope

METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
OTHER = "other"
LEFT = "left"
"""In place of a status, where the client left before there was one."""
MOST_WEIGHED = 10_000


class Metrics:
    """Of one process. For the event loop's thread only."""

    def __init__(self, projects: int) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        """By route and class of status."""
        self.unanswered: Counter[str] = Counter()
        """Completions that no replica answered, by the code that the client was given."""
        self.tokens = ByProject(projects)

    def answered(self, scope: Scope, status: int | None) -> None:
        """A request has its status, or never gets one."""
        self.requests[_route(scope), f"{status // 100}xx" if status is not None else LEFT] += 1

    def failed(self, status: int, code: str | None) -> None:
        """A completion ends with this error; those that are the client's own doing do not count."""
        if status >= 500:
            self.unanswered[code or OTHER] += 1


@dataclass(slots=True)
class Tokens:
    prompt: int = 0
    completion: int = 0


class ByProject:
    """Tokens of the `most` projects that use most, each by itself, and of all others together.

    Numbers only ever grow: a project that comes to be among the first begins at zero with what it uses from then on,
    and one that no longer is among them just ends.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._weights: Counter[str] = Counter()
        self.shown: dict[str, Tokens] = {}
        self.others = Tokens()

    def add(self, project: str, prompt: int, completion: int) -> None:
        self._weights[project] += prompt + completion
        tokens = self.shown.get(project)
        if tokens is None:
            if len(self.shown) < self._most:
                tokens = self.shown[project] = Tokens()
            else:
                tokens = self.others
        tokens.prompt += prompt
        tokens.completion += completion

    def elect(self) -> None:
        """Decides who is shown from now on."""
        first = [project for project, _ in self._weights.most_common(self._most)]
        for project in self.shown.keys() - set(first):
            del self.shown[project]
        for project in first:
            self.shown.setdefault(project, Tokens())
        if len(self._weights) > MOST_WEIGHED:
            self._weights = Counter(dict(self._weights.most_common(MOST_WEIGHED // 2)))


def _route(scope: Scope) -> str:
    # Set by the router, but for the gateway's own routes, whose paths are all there is to them.
    template = getattr(scope.get("route"), "path_format", None)
    if template is None:
        template = scope["path"] if "endpoint" in scope and not scope.get("path_params") else None
    if template is None or scope["method"] not in METHODS:
        return OTHER
    return f"{scope['method']} {template}"
