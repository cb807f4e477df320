"""A job's request, from what stands on the command line."""

import json
from pathlib import Path
from typing import Any

from weft.cli.commands import Session
from weft.cli.failures import Refusal
from weft.cli.files import sent

NAMES = {"epochs": "n_epochs", "batch_size": "batch_size", "learning_rate": "learning_rate", "rank": "lora_rank"}
PLAIN = ("model", "suffix", "seed", "adapter")


def job_request(session: Session, options: dict[str, Any]) -> Any:
    """Uploads the files that are named by their path."""
    settings = [_setting(given) for given in options["settings"]]
    hyperparameters = {NAMES[name]: options[name] for name in NAMES if options[name] is not None} | dict(settings)
    method = options["method"]
    request = {name: options[name] for name in PLAIN if options[name] is not None}
    request["method"] = {"type": method, method: {"hyperparameters": hyperparameters}}
    for name in ("training_file", "validation_file"):
        if options[name] is not None:
            request[name] = file_id(session, options[name])
    if options.get("promote") is not None:
        adapter, request["on_success"] = _on_success(session, options)
        request.setdefault("adapter", adapter)
    return request


def _on_success(session: Session, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The adapter that the job is for, and what becomes of its model."""
    named, at, alias = str(options["promote"]).rpartition("@")
    adapter = options["adapter"] or named
    if not adapter or (at and named != adapter):
        raise Refusal(
            f"--promote needs to know one adapter: write NAME@{alias}, or --adapter NAME", Refusal.USAGE, "usage"
        )
    evaluation: dict[str, Any] = {"grader": options["grader"]} if options["grader"] else {}
    if options["judge_by"] is not None:
        evaluation["file_id"] = file_id(session, options["judge_by"])
    gate: dict[str, Any] = {"alias": alias, "evaluation": evaluation, "must_beat_current": not options["even_if_worse"]}
    if options["min_score"] is not None:
        gate["min_score"] = options["min_score"]
    return adapter, gate


def file_id(session: Session, named: str) -> str:
    """Of a file at the service, which is uploaded where it is named by its path."""
    path = Path(named)
    if path.is_file():
        return sent(session, path, "fine-tune").id
    if not named.startswith("file-"):
        raise Refusal(f"{named} is no file here, nor the id of one at the service", Refusal.USAGE, "usage")
    return named


def _setting(given: str) -> tuple[str, Any]:
    name, equals, value = given.partition("=")
    if not equals or not name:
        raise Refusal(f"--set takes NAME=VALUE, not {given!r}", Refusal.USAGE, "usage")
    try:
        return name, json.loads(value)
    except ValueError:
        # Words such as auto and cosine need no quotes.
        return name, value
