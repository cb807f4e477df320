"""A tenant of a replica that another one attacks: its greedy answers, all at once and always in the same company."""

import asyncio
from collections.abc import Sequence
from random import Random
from string import ascii_lowercase
from typing import Any

from service.contracts.replica import TENANT_HEADER
from tests.inference.adapters import lora
from tests.inference.running import Replica, chat

ANSWER_TOKENS = 6
VERDICT_SECONDS = 120.0
NEIGHBOUR, ATTACKER = "neighbour", "attacker"
"""Two tenants as the gateway tells them apart: by a pseudonym in a header, and a salt of that in the body."""


class Neighbours:
    """Of a replica with two slots: some ask the base, the others two adapters."""

    def __init__(self, replica: Replica, answers: int) -> None:
        models = ["base", *(replica.service.publish(lora(seed)) for seed in (1, 2))]
        self._replica = replica
        chance = Random(0)
        prompts = ["".join(chance.choices(ascii_lowercase, k=12)) for _ in range(answers)]
        self._asked = [(models[number % 3], prompt) for number, prompt in enumerate(prompts)]

    async def answers(self) -> Sequence[str]:
        """As text, in order."""
        return await asyncio.gather(*(self._answer(*each) for each in self._asked))

    async def _answer(self, model: str, prompt: str) -> str:
        asked = {"model": model, "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0, "ignore_eos": True}
        status, body = await posted(self._replica, NEIGHBOUR, "/v1/completions", asked)
        assert status == 200, body
        return body["choices"][0]["text"]


async def refusal(replica: Replica, adapter: str) -> tuple[str, str]:
    """The code and reason with which a request for the adapter is refused; no code where it is answered.

    That it is on its way is no verdict: it is asked for again.
    """
    async with asyncio.timeout(VERDICT_SECONDS):
        while True:
            status, body = await posted(replica, ATTACKER, "/v1/chat/completions", chat(adapter))
            if status == 200:
                return "", ""
            if body["error"]["code"] != "adapter_loading":
                return body["error"]["code"], body["error"]["message"]


async def posted(replica: Replica, tenant: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """A request as the gateway makes it for a tenant."""
    headers = {"authorization": f"Bearer {replica.now.api_key}", TENANT_HEADER: tenant}
    salted = body | {"cache_salt": f"salt-of-{tenant}"}
    async with replica.session.post(f"{replica.now.url}{path}", json=salted, headers=headers) as response:
        return response.status, await response.json()
