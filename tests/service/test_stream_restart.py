"""A reader of a job's events outlives the service that it reads from and goes on at the next process."""

import json
from pathlib import Path

import httpx2

from service.settings import ServiceSettings
from tests.service.stage import open_stage
from tests.service.test_app_process import environment, serving

__all__ = ["environment"]


def _read(client: httpx2.Client, job: str, last: str | None, count: int) -> list[tuple[str, str]]:
    """Ids and messages of the next events, at most `count` and none after the end."""
    headers = {"last-event-id": last} if last else {}
    found: list[tuple[str, str]] = []
    with client.stream("GET", f"/jobs/{job}/events?stream=true", headers=headers) as answer:
        at = ""
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                at = value
            elif name == "data":
                if value == "[DONE]":
                    break
                found.append((at, json.loads(value)["message"]))
                if len(found) == count:
                    break
    return found


async def test_a_reader_goes_on_at_the_next_process(
    environment: dict[str, str],
    service_settings: ServiceSettings,
    tmp_path: Path,
) -> None:
    async with open_stage(service_settings) as stage:
        project = await stage.project()
        job, key = await stage.job(project), await stage.key(project)
        base = f"http://127.0.0.1:{environment['WEFT_PORT']}/v1/fine_tuning"
        with httpx2.Client(base_url=base, headers={"authorization": f"Bearer {key}"}, timeout=20) as client:
            with serving(environment, tmp_path / "first"):
                begun = _read(client, job, None, 2)
            # Killed by `serving`; the job goes on meanwhile.
            await stage.succeed(await stage.claimed())
            with serving(environment, tmp_path / "second"):
                rest = _read(client, job, begun[-1][0], 100)
        assert [message for _, message in begun + rest] == await stage.messages(job)
