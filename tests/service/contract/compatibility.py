"""Every method of the `openai` package in the groups that Weft serves: how it is called here, or why it is not.

`python -m tests.service.contract.compatibility` prints the table for people, docs/compatibility.md.
"""

import base64
import hashlib
import hmac
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import openai
from openai._resource import AsyncAPIResource, SyncAPIResource

GROUPS = ("files", "uploads", "fine_tuning", "models", "chat.completions", "completions", "batches", "webhooks")
JOB_EVENTS: list[Any] = ["fine_tuning.job.succeeded"]
LINES = b'{"messages":[{"role":"user","content":"2+2"},{"role":"assistant","content":"4"}]}\n' * 12
SECRET = "whsec_" + base64.b64encode(b"0" * 24).decode()
MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]


@dataclass
class World:
    """What the calls need: ids of the caller's own things, and something new of each kind that a call uses up."""

    ids: dict[str, str]
    fresh: Callable[[str], str]
    """A new thing's id: of a file, an upload, a part of it, a queued job, a paused job, a model or an endpoint."""


Call = Callable[[Any, World], Any]


def _signed(body: bytes) -> dict[str, str]:
    name, moment = "msg_1", str(int(time.time()))
    signature = hmac.new(b"0" * 24, f"{name}.{moment}.{body.decode()}".encode(), hashlib.sha256).digest()
    return {
        "webhook-id": name,
        "webhook-timestamp": moment,
        "webhook-signature": "v1," + base64.b64encode(signature).decode(),
    }


EVENT = json.dumps(
    {
        "id": "evt_1",
        "object": "event",
        "created_at": 1,
        "type": "fine_tuning.job.succeeded",
        "data": {"id": "ftjob-1"},
    }
).encode()


def _create_upload(client: Any) -> Any:
    return client.uploads.create(bytes=len(LINES), filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune")


def _complete(client: Any, world: World) -> Any:
    upload = world.fresh("upload")
    return client.uploads.complete(upload, part_ids=[world.fresh(f"part of {upload}")])


def _permissions(client: Any, world: World) -> Any:
    return client.with_options(api_key=world.ids["admin key"]).fine_tuning.checkpoints.permissions


CALLS: dict[str, Call] = {
    "files.content": lambda c, w: c.files.content(w.ids["file"]),
    "files.create": lambda c, w: c.files.create(file=("a.jsonl", io.BytesIO(LINES)), purpose="fine-tune"),
    "files.delete": lambda c, w: c.files.delete(w.fresh("file")),
    "files.list": lambda c, w: c.files.list(limit=1),
    "files.retrieve": lambda c, w: c.files.retrieve(w.ids["file"]),
    "files.retrieve_content": lambda c, w: c.files.retrieve_content(w.ids["file"]),
    "files.wait_for_processing": lambda c, w: c.files.wait_for_processing(w.ids["file"]),
    "uploads.cancel": lambda c, w: c.uploads.cancel(w.fresh("upload")),
    "uploads.complete": _complete,
    "uploads.create": lambda c, w: _create_upload(c),
    "uploads.parts.create": lambda c, w: c.uploads.parts.create(w.fresh("upload"), data=io.BytesIO(LINES)),
    "uploads.upload_file_chunked": lambda c, w: c.uploads.upload_file_chunked(
        file=LINES, filename="a.jsonl", bytes=len(LINES), mime_type="text/jsonl", purpose="fine-tune", part_size=512
    ),
    "fine_tuning.checkpoints.permissions.create": lambda c, w: _permissions(c, w).create(
        w.ids["model"], project_ids=[w.ids["other project"]]
    ),
    "fine_tuning.checkpoints.permissions.delete": lambda c, w: _permissions(c, w).delete(
        w.fresh("permission"), fine_tuned_model_checkpoint=w.ids["model"]
    ),
    "fine_tuning.checkpoints.permissions.list": lambda c, w: _permissions(c, w).list(w.ids["model"]),
    "fine_tuning.checkpoints.permissions.retrieve": lambda c, w: _permissions(c, w).retrieve(w.ids["model"]),
    "fine_tuning.jobs.cancel": lambda c, w: c.fine_tuning.jobs.cancel(w.fresh("queued job")),
    "fine_tuning.jobs.checkpoints.list": lambda c, w: c.fine_tuning.jobs.checkpoints.list(w.ids["job"], limit=1),
    "fine_tuning.jobs.create": lambda c, w: c.fine_tuning.jobs.create(
        model="weft-tiny",
        training_file=w.ids["file"],
        suffix="mine",
        seed=1,
        metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto", "batch_size": 4}}},
        integrations=[{"type": "wandb", "wandb": {"project": "p"}}],
    ),
    "fine_tuning.jobs.list": lambda c, w: c.fine_tuning.jobs.list(limit=1),
    "fine_tuning.jobs.list_events": lambda c, w: c.fine_tuning.jobs.list_events(w.ids["job"], limit=1),
    "fine_tuning.jobs.pause": lambda c, w: c.fine_tuning.jobs.pause(w.fresh("queued job")),
    "fine_tuning.jobs.resume": lambda c, w: c.fine_tuning.jobs.resume(w.fresh("paused job")),
    "fine_tuning.jobs.retrieve": lambda c, w: c.fine_tuning.jobs.retrieve(w.ids["job"]),
    "models.delete": lambda c, w: c.models.delete(w.fresh("model")),
    "models.list": lambda c, w: c.models.list(),
    "models.retrieve": lambda c, w: c.models.retrieve(w.ids["model"]),
    "chat.completions.create": lambda c, w: c.chat.completions.create(model=w.ids["model"], messages=MESSAGES),
    "chat.completions.create (stream)": lambda c, w: c.chat.completions.create(
        model=w.ids["model"], messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    ),
    "chat.completions.parse": lambda c, w: c.chat.completions.parse(model=w.ids["model"], messages=MESSAGES),
    "chat.completions.stream": lambda c, w: c.chat.completions.stream(model=w.ids["model"], messages=MESSAGES),
    "completions.create": lambda c, w: c.completions.create(model=w.ids["model"], prompt="Hi"),
    "completions.create (stream)": lambda c, w: c.completions.create(model=w.ids["model"], prompt="Hi", stream=True),
    "batches.cancel": lambda c, w: c.batches.cancel(w.fresh("batch")),
    "batches.create": lambda c, w: c.batches.create(
        input_file_id=w.ids["batch file"], endpoint="/v1/chat/completions", completion_window="24h"
    ),
    "batches.list": lambda c, w: c.batches.list(limit=1),
    "batches.retrieve": lambda c, w: c.batches.retrieve(w.ids["batch"]),
    "webhooks.create": lambda c, w: c.webhooks.create(name="ci", url=w.ids["hook"], event_types=JOB_EVENTS),
    "webhooks.delete": lambda c, w: c.webhooks.delete(w.fresh("endpoint")),
    "webhooks.event_types.list": lambda c, w: c.webhooks.event_types.list(),
    "webhooks.list": lambda c, w: c.webhooks.list(limit=1),
    "webhooks.retrieve": lambda c, w: c.webhooks.retrieve(w.ids["endpoint"]),
    "webhooks.rotate_secret": lambda c, w: c.webhooks.rotate_secret(w.fresh("endpoint")),
    "webhooks.test": lambda c, w: c.webhooks.test(w.ids["endpoint"], event_type=JOB_EVENTS[0]),
    "webhooks.unwrap": lambda c, w: c.webhooks.unwrap(EVENT, _signed(EVENT), secret=SECRET),
    "webhooks.update": lambda c, w: c.webhooks.update(w.fresh("endpoint"), name="other"),
    "webhooks.verify_signature": lambda c, w: c.webhooks.verify_signature(EVENT, _signed(EVENT), secret=SECRET),
}
"""How each method that works is called. Both clients are called alike; the asynchronous one's answer is awaited."""

KEPT = "Weft keeps no prompts and no answers, so there are no stored completions."
GRADERS = "Graders belong to reinforcement fine-tuning, which Weft does not do; jobs are supervised or dpo."
ABSENT: dict[str, tuple[str, Call]] = {
    "fine_tuning.alpha.graders.run": (
        GRADERS,
        lambda c, w: c.fine_tuning.alpha.graders.run(grader={}, model_sample="a"),
    ),
    "fine_tuning.alpha.graders.validate": (GRADERS, lambda c, w: c.fine_tuning.alpha.graders.validate(grader={})),
    "chat.completions.delete": (KEPT, lambda c, w: c.chat.completions.delete("chatcmpl-1")),
    "chat.completions.list": (KEPT, lambda c, w: c.chat.completions.list()),
    "chat.completions.messages.list": (KEPT, lambda c, w: c.chat.completions.messages.list("chatcmpl-1")),
    "chat.completions.retrieve": (KEPT, lambda c, w: c.chat.completions.retrieve("chatcmpl-1")),
    "chat.completions.update": (KEPT, lambda c, w: c.chat.completions.update("chatcmpl-1", metadata={})),
}
"""Why a method does not work, and a call that must be refused as OpenAI's clients expect."""

NOTES = {
    "files.wait_for_processing": "Files are checked as they are uploaded, so it returns at once; large uploads later.",
    "fine_tuning.checkpoints.permissions.create": "With an administrator's key as `api_key`, as at OpenAI.",
    "fine_tuning.jobs.cancel": "The status is `cancelled` at once; the trainer of a running job stops within seconds.",
    "fine_tuning.jobs.create": "Weft's own settings go in `hyperparameters`; integrations are recorded, not used.",
    "fine_tuning.jobs.pause": "The status is `pausing`, then `paused`, as OpenAI sends them; the package lacks both.",
    "chat.completions.create": "Fields that vLLM does not know are refused by name; `store` is ignored.",
    "completions.create": "`best_of` may be no more than `n`.",
    "webhooks.create": "The events of fine-tuning jobs; `webhooks.event_types.list` has them all.",
}


DIFFERENCES = (
    "A file of too few examples, or of the wrong format, is refused with a 400 when the job is created, where OpenAI "
    "creates the job and fails it with an event; so does Weft where the file is still being put together of its parts.",
    "Nothing that was said is kept. `store` is taken and ignored by chat and by responses, and what needs a kept "
    "response (`previous_response_id`, `conversation`, `background`, stored `prompt`s) is refused by name.",
    "Tool calls are parsed where the base's chat template shows how it writes them. Arguments keep to the schema of a "
    "function that is `strict`; else the model alone answers for them, also in a call that `tool_choice` forces.",
    "Requests that are no inference have a rate of their own, told by `Retry-After` alone.",
)
"""What no method's line in the table says."""


def methods(kind: type[openai.OpenAI | openai.AsyncOpenAI] = openai.OpenAI) -> Iterator[str]:
    """Of the groups in the installed package, by introspection."""
    client = kind(api_key="none")
    for group in GROUPS:
        resource: Any = client
        for part in group.split("."):
            resource = getattr(resource, part)
        yield from _methods(resource, group)


def _methods(resource: Any, path: str) -> Iterator[str]:
    for name in dir(type(resource)):
        if name.startswith(("_", "with_")):
            continue
        found = getattr(resource, name)
        if isinstance(found, SyncAPIResource | AsyncAPIResource):
            yield from _methods(found, f"{path}.{name}")
        elif callable(found):
            yield f"{path}.{name}"


def table() -> str:
    """The Markdown that people read."""
    lines = [
        "# Methods of the `openai` package",
        "",
        f"Generated by `make openapi` from `openai` {openai.__version__} and the tables in",
        "`tests/service/contract/compatibility.py`, whose test calls each method, sync and async, with the package's",
        "strict validation of answers.",
        "",
        "| Method | Here |",
        "|---|---|",
    ]
    for name in methods():
        said = f"No. {ABSENT[name][0]}" if name in ABSENT else f"Works. {NOTES.get(name, '')}".strip()
        lines.append(f"| `client.{name}` | {said} |")
    lines += ["", "## Other differences", "", *(fill(f"- {each}", 120, subsequent_indent="  ") for each in DIFFERENCES)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
