"""A new version under an alias: right answers, by their text, within a second of the change, and no wrong ones."""

import asyncio
import time

import httpx2
import pytest

from deploy.local import tiny_base
from tests.benchmarks.serving.marks import MarkMaker
from tests.benchmarks.serving.shop import Shop
from tests.e2e.stack import Stack

pytestmark = pytest.mark.stack

NAME, VERSIONS = "fresh-bot", 4
SEEN_SECONDS = 1.0


async def put_on_sale(stack: Stack, key: str, made: list[tuple[str, dict[str, bytes]]]) -> list[str]:
    """The models behind the marks, in their order."""
    async with Shop(stack.data) as shop:
        stall = await shop.stall(stack.url, key)
        return [(await shop.put_on_sale(stall, mark, files)).model for mark, files in made]


def test_a_new_version_answers_within_a_second(stack: Stack) -> None:
    maker = MarkMaker(tiny_base.MODEL_DIR)
    marks = maker.marks(VERSIONS)
    key = stack.project("freshness")
    models = asyncio.run(put_on_sale(stack, key, [(mark, maker.make(mark, n).files) for n, mark in enumerate(marks)]))
    with httpx2.Client(base_url=stack.base_url, headers={"authorization": f"Bearer {key}"}, timeout=60) as http:

        def call(method: str, path: str, body: dict[str, object]) -> None:
            http.request(method, f"/adapters{path}", json=body).raise_for_status()

        def said() -> tuple[str, str]:
            """The version's name and its words."""
            message = {"role": "user", "content": "Please ship order 4821 for Mira Kato to Lund."}
            body = {"model": NAME, "messages": [message], "temperature": 0, "max_tokens": 8}
            answer = http.post("/chat/completions", json=body)
            answer.raise_for_status()
            return answer.headers["x-adapter-version"], answer.json()["choices"][0]["message"]["content"]

        call("POST", "", {"name": NAME, "from": {"type": "model", "model": models[0]}})
        assert said() == (f"{NAME}@v1", marks[0])
        for version in range(2, VERSIONS + 1):
            call("POST", f"/{NAME}/versions", {"source": {"type": "model", "model": models[version - 1]}})
            call("PUT", f"/{NAME}/aliases/default", {"version": version})
            old, new = [(f"{NAME}@v{number}", marks[number - 1]) for number in (version - 1, version)]
            changed = time.monotonic()
            while (answer := said()) != new:
                assert answer == old
                assert time.monotonic() < changed + SEEN_SECONDS
            assert time.monotonic() < changed + SEEN_SECONDS
            assert {said()} == {new}
