"""Words that only a tenant's data holds, sent by every way in, are found in that tenant's own objects and nowhere else:
in no log and no other file of the stack, on no metrics page, in no column of the database.
"""

import asyncio
import io
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from deploy.local import postgres
from deploy.local import secrets as stack_secrets
from deploy.local.demo import SETTINGS
from deploy.local.tiny_base.tasks import examples
from service.contracts.ids import ProjectId
from service.contracts.layout import project_prefix
from tests.conftest import wait_until
from tests.e2e.stack import Stack
from tests.e2e.training import wait_for_job

pytestmark = pytest.mark.stack

BASE = "weft-tiny"
SUFFIX = "named-by-its-owner"
"""Told to the service to be kept and shown: proves that the search finds what there is."""
CONTEXT_TOKENS = 1024
TABLES = """
    select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'm') and n.nspname = 'public' order by 1
"""


class Canaries:
    """Makes one word for each way in, so that a leak is known by where it came from."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}

    def __call__(self, way: str) -> str:
        return self.words.setdefault(way, f"canary{secrets.token_hex(10)}")

    def found_in(self, data: bytes) -> set[str]:
        # A column of bytes is told as hexadecimal digits.
        forms = {way: (word.encode(), word.encode().hex().encode()) for way, word in self.words.items()}
        return {way for way, spelled in forms.items() if any(form in data for form in spelled)}


@pytest.fixture(scope="module")
def client(stack: Stack) -> OpenAI:
    return OpenAI(base_url=stack.base_url, api_key=stack.project("canary"), max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def planted(stack: Stack, client: OpenAI) -> Canaries:
    """Everything was sent and everything that begins by itself has come to its end."""
    canary = Canaries()
    endpoint = {"name": "hook", "url": "https://webhooks.invalid/", "event_types": ["fine_tuning.job.succeeded"]}
    client.post("/webhook_endpoints", body=endpoint, cast_to=httpx.Response)
    plant_bad_files(client, canary)
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=uploaded(client, training_lines(canary)),
        method={"type": "supervised", "supervised": {"hyperparameters": {**SETTINGS, "n_epochs": 1}}},
        suffix=SUFFIX,
        extra_headers={"idempotency-key": "canary"},
    )
    plant_prompts(client, canary)
    batches = [
        start_batch(client, batch_lines(canary)),
        start_batch(client, [canary("batch that is no JSON").encode()]),
    ]
    model = wait_for_job(client, job.id).fine_tuned_model
    assert model
    client.chat.completions.create(model=model, messages=user(canary("prompt to an adapter")), max_tokens=4)
    ended = {"completed", "failed", "expired", "cancelled"}
    for batch in batches:
        wait_until(lambda: client.batches.retrieve(batch).status in ended, 120, "the batch has ended")  # noqa: B023
    return canary


def keyed() -> dict[str, str]:
    return {"idempotency-key": secrets.token_hex(8)}


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def uploaded(client: OpenAI, lines: list[bytes], purpose: Any = "fine-tune") -> str:
    body = io.BytesIO(b"\n".join(lines))
    return client.files.create(file=("lines.jsonl", body), purpose=purpose, extra_headers=keyed()).id


def example(question: str, answer: str, **more: Any) -> bytes:
    messages = [*user(question), {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, **more}).encode()


def training_lines(canary: Canaries) -> list[bytes]:
    called = {"type": "function", "function": {"name": "find", "description": canary("tool of a training line")}}
    return [
        *(json.dumps(line).encode() for line in examples("support-desk", 12, seed=1)),
        example(canary("question of a training line"), canary("answer of a training line")),
        example("hi", "ho", tools=[called]),
        example("hi", (canary("training line longer than the context") + " ") * CONTEXT_TOKENS),
    ]


def plant_bad_files(client: OpenAI, canary: Canaries) -> None:
    """Each is refused, or its line is reported."""
    good = [example("hi", "ho")] * 10
    bad: dict[str, bytes] = {
        "line that is no JSON": canary("line that is no JSON").encode(),
        "line that is no UTF-8": canary("line that is no UTF-8").encode() + b"\xff",
        "unknown role": json.dumps({"messages": [{"role": canary("unknown role"), "content": "x"}]}).encode(),
        "unknown field": json.dumps({canary("unknown field"): 1}).encode(),
        "wrong kind": json.dumps({"messages": {canary("wrong kind"): 1}}).encode(),
        "wrong arguments": example("hi", "ho", tools=[{"type": canary("wrong arguments")}]),
        "line too long": example(canary("line too long"), "x" * (2 << 20)),
    }
    for line in bad.values():
        with pytest.raises(openai.BadRequestError):
            uploaded(client, [*good, line, *good])
        file = uploaded(client, [*good, line, *good], "user_data")
        with pytest.raises(openai.BadRequestError):
            client.fine_tuning.jobs.create(model=BASE, training_file=file)


def plant_prompts(client: OpenAI, canary: Canaries) -> None:
    client.chat.completions.create(
        model=BASE, messages=user(canary("chat prompt")), max_tokens=4, extra_headers=keyed()
    )
    for _ in client.chat.completions.create(
        model=BASE, messages=user(canary("prompt of a stream")), max_tokens=4, stream=True, extra_headers=keyed()
    ):
        pass
    # Its answer begins with the prompt, and is kept under the key.
    echoed = canary("completion prompt")
    answer = client.completions.create(model=BASE, prompt=echoed, max_tokens=4, echo=True, extra_headers=keyed())
    assert echoed in answer.choices[0].text
    client.responses.create(model=BASE, input=canary("input of a response"), max_output_tokens=4)
    for hostile in hostile_requests(canary):
        headers = keyed()
        body = {"model": BASE, "messages": user("hi"), "max_tokens": 4, **hostile}
        with pytest.raises(openai.APIStatusError) as refused:
            client.post("/chat/completions", body=body, cast_to=httpx.Response, options={"headers": headers})
        assert refused.value.status_code < 500, (hostile, refused.value)


def hostile_requests(canary: Canaries) -> Iterator[dict[str, Any]]:
    """Refused by the service, by vLLM's validation, and from within its engine."""
    yield {"messages": user((canary("prompt longer than the context") + " ") * CONTEXT_TOKENS)}
    yield {"messages": [{"role": canary("role in a prompt"), "content": "x"}]}
    yield {"messages": [{"role": "user", "content": {"text": canary("content of a wrong kind")}}]}
    yield {canary("unknown parameter"): 1}
    yield {"model": canary("unknown model")}
    yield {"temperature": canary("parameter of a wrong kind")}
    schema = {"name": "x", "schema": {"type": canary("schema")}}
    yield {"response_format": {"type": "json_schema", "json_schema": schema}}
    yield {"tools": [{"type": "function", "function": {"name": canary("tool"), "parameters": "none"}}]}
    yield {"tool_choice": {"type": "function", "function": {"name": canary("tool choice")}}}


def batch_lines(canary: Canaries) -> list[bytes]:
    def line(number: int, **body: Any) -> bytes:
        request = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions"}
        return json.dumps({**request, "body": {"model": BASE, "max_tokens": 4, **body}}).encode()

    return [
        line(1, messages=user(canary("request of a batch"))),
        line(2, messages=[{"role": canary("bad request of a batch"), "content": "x"}]),
        line(3, messages=user((canary("long request of a batch") + " ") * CONTEXT_TOKENS)),
    ]


def start_batch(client: OpenAI, lines: list[bytes]) -> str:
    file = uploaded(client, lines, "batch")
    client.get(f"/files/{file}/validation", cast_to=httpx.Response)
    return client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h").id


@pytest.fixture(scope="module")
def own(stack: Stack, client: OpenAI) -> str:
    """What the path of each object of the tenant has in it."""
    (project,) = asyncio.run(told_by_the_database(stack, "select id from projects where name = 'canary'"))
    return f"/{project_prefix(ProjectId(project))}"


async def told_by_the_database(stack: Stack, query: str) -> list[Any]:
    server = postgres.prepare(stack.data.postgres, stack_secrets.load_or_create(stack.data.root))
    connection = await server.connect("postgres", postgres.DATABASE)
    try:
        return [row[0] for row in await connection.fetch(query)]
    finally:
        await connection.close()


def test_own_objects_hold_what_was_sent(stack: Stack, own: str, planted: Canaries) -> None:
    objects = [path for path in stack.data.objects.rglob("*") if path.is_file() and own in str(path)]
    stored = b"".join(content(path) for path in objects)
    assert {"question of a training line", "tool of a training line", "request of a batch"} <= planted.found_in(stored)


def test_no_other_file_holds_any_of_it(stack: Stack, own: str, planted: Canaries) -> None:
    """Logs, spools, caches, what the trainer and the replica leave, and PostgreSQL's own files."""
    found = [stack.output, *stack.data.root.rglob("*"), *stack.data.temporary.rglob("*")]
    searched = [path for path in found if path.is_file() and own not in str(path)]
    assert {path.name for path in searched} >= {"service.log", "trainer.log", "replica.log", "postgres.log"}
    leaks = {(path.name, line) for path in searched for line in content(path).splitlines() if planted.found_in(line)}
    assert leaks == set()


def content(path: Path) -> bytes:
    """A running stack takes files away meanwhile, such as segments of the spool."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def test_no_column_of_the_database_holds_any_of_it(stack: Stack, planted: Canaries) -> None:
    tables = asyncio.run(told_by_the_database(stack, TABLES))
    assert {"jobs", "job_events", "audit_logs", "files", "batches", "recorded_answers"} <= set(tables)
    leaks: dict[str, set[str]] = {}
    seen = b""
    for table in tables:
        rows = asyncio.run(told_by_the_database(stack, f'select row_to_json(t)::text from "{table}" t'))
        dumped = "\n".join(rows).encode()
        seen += dumped
        if ways := planted.found_in(dumped):
            leaks[table] = ways
    assert leaks == {}
    assert SUFFIX.encode() in seen


def test_no_metrics_page_shows_any_of_it(stack: Stack, planted: Canaries) -> None:
    pages = {name: page for name, port in stack.data.remembered_ports().items() if (page := metrics(port))}
    assert any("vllm:" in page for page in pages.values())
    assert {name: ways for name, page in pages.items() if (ways := planted.found_in(page.encode()))} == {}


def metrics(port: int) -> str:
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10)
    except httpx.HTTPError:
        return ""
    return answer.text if answer.status_code == 200 else ""
