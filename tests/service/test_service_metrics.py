"""What a process counts: labels stay few whatever is asked, and no number ever falls."""

import random
from types import SimpleNamespace

import pytest
from starlette.types import Scope

from service.metrics import ByProject, Metrics


def scope(method: str = "GET", path: str = "/x", **routed: object) -> Scope:
    return {"type": "http", "method": method, "path": path, **routed}


@pytest.mark.parametrize(
    ("asked", "route"),
    [
        (scope(path="/v1/files/file-1", route=SimpleNamespace(path_format="/v1/files/{id}")), "GET /v1/files/{id}"),
        (scope("POST", "/v1/chat/completions", endpoint=object(), path_params={}), "POST /v1/chat/completions"),
        (scope(path="/v1/anything/secret"), "other"),
        (scope("BREW", "/v1/chat/completions", endpoint=object(), path_params={}), "other"),
        (scope(path="/v1/things/secret", endpoint=object(), path_params={"thing": "secret"}), "other"),
    ],
)  # fmt: skip
def test_a_route_is_its_template_and_never_what_a_caller_wrote(asked: Scope, route: str) -> None:
    metrics = Metrics(projects=1)
    metrics.answered(asked, 204)
    metrics.answered(asked, None)
    assert metrics.requests == {(route, "2xx"): 1, (route, "left"): 1}


def test_only_what_no_client_is_to_blame_for_is_a_failure() -> None:
    metrics = Metrics(projects=1)
    for status, code in ((400, "invalid_request"), (429, "rate_limit_exceeded"), (503, "no_replica"), (500, None)):
        metrics.failed(status, code)
    assert metrics.unanswered == {"no_replica": 1, "other": 1}


def test_those_who_use_most_come_to_have_numbers_of_their_own() -> None:
    tokens = ByProject(most=2)
    for project, used in (("a", 10), ("b", 20), ("c", 1000)):
        tokens.add(project, used, 1)
    assert (set(tokens.shown), tokens.others.prompt, tokens.others.completion) == ({"a", "b"}, 1000, 1)
    tokens.elect()
    tokens.add("c", 5, 2)
    tokens.add("a", 7, 0)
    assert set(tokens.shown) == {"b", "c"}
    assert (tokens.shown["c"].prompt, tokens.shown["b"].prompt, tokens.others.prompt) == (5, 20, 1007)


def test_no_series_falls_while_it_is_there() -> None:
    chance, tokens = random.Random(5), ByProject(most=3)
    before: dict[str, int] = {}
    for _ in range(500):
        tokens.add(f"project-{min(chance.randrange(20), chance.randrange(20))}", chance.randrange(100), 1)
        if chance.random() < 0.1:
            tokens.elect()
        now = {"other": tokens.others.prompt, **{name: each.prompt for name, each in tokens.shown.items()}}
        assert len(now) <= 4
        assert all(now[name] >= seen for name, seen in before.items() if name in now)
        before = now
