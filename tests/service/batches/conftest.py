"""The gateway's tenants and replica, quick batches, and input files for them."""

import io
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types import Batch

from service.settings import ServiceSettings
from tests.conftest import wait_until
from tests.service.gateway.conftest import (
    http,
    ledger,
    neighbour,
    running_upstream,
    stage,
    tenant,
    upstream,
)

__all__ = ["http", "ledger", "neighbour", "running_upstream", "stage", "tenant", "upstream"]

CHAT = "/v1/chat/completions"
OVER = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    return service_settings.model_copy(update={"cold_wait_seconds": 2.0})


@pytest.fixture(scope="module", autouse=True)
def quick() -> Any:
    """Batches are recorded often and taken up soon after a death."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.batches.asking.RECORD_SECONDS", 0.1)
        patch.setattr("service.batches.asking.FIRST_PAUSE", 0.05)
        patch.setattr("service.batches.executor.POLL_SECONDS", 0.05)
        yield


def line(number: int, model: str, url: str = CHAT, **fields: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": f"request {number}"}]} if url == CHAT else {"input": "Hi"}
    return {"custom_id": f"r{number}", "method": "POST", "url": url, "body": {"model": model, **asked, **fields}}


def upload(sdk: openai.OpenAI, lines: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(each) + "\n" for each in lines)
    return sdk.files.create(file=("requests.jsonl", io.BytesIO(text.encode())), purpose="batch").id


def create(sdk: openai.OpenAI, lines: list[dict[str, Any]], endpoint: Any = CHAT, **fields: Any) -> Batch:
    return sdk.batches.create(input_file_id=upload(sdk, lines), endpoint=endpoint, completion_window="24h", **fields)


def over(sdk: openai.OpenAI, batch: str, seconds: float = 30) -> Batch:
    found: list[Batch] = []

    def ended() -> bool:
        found.append(sdk.batches.retrieve(batch))
        return found[-1].status in OVER

    wait_until(ended, seconds, what="the batch ended")
    return found[-1]


def rows(sdk: openai.OpenAI, file: str | None) -> dict[str, Any]:
    """The lines of an output or error file by their custom id."""
    assert file is not None
    lines = [json.loads(text) for text in sdk.files.content(file).text.splitlines()]
    found = {each["custom_id"]: each for each in lines}
    assert len(found) == len(lines), "a line was answered twice"
    return found


Client = Callable[[str], openai.OpenAI]
