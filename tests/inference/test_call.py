"""What a request is settled at: what the engine did for it, whether or not its client was there for the end."""

from types import SimpleNamespace
from typing import Any

from inference.call import Call
from inference.metering import Tokens
from tests.inference.test_work import sequence


async def receive() -> dict[str, Any]:
    return {"type": "http.disconnect"}


async def send(message: Any) -> None:
    assert message["type"].startswith("http.response.")


def call() -> Call:
    return Call(b"{}", receive, send)


async def answered(call: Call, status: int) -> None:
    await call.send({"type": "http.response.start", "status": status, "headers": []})
    await call.send({"type": "http.response.body", "body": b"{}", "more_body": False})


async def test_answered_request_costs_what_the_engine_did() -> None:
    answer = call()
    answer.work.begin(sequence(7, 5))
    await answered(answer, 200)
    assert answer.used == Tokens(7, 5)


async def test_request_whose_client_left_before_its_answer_costs_the_same() -> None:
    """No byte was sent, be it a whole answer that was not ready or a stream between two events."""
    dropped = call()
    dropped.work.begin(sequence(7, 400))
    assert dropped.used == Tokens(7, 400)


async def test_refusal_costs_nothing() -> None:
    refused = call()
    await answered(refused, 400)
    assert refused.used == Tokens()


async def test_nobody_knows_what_was_dropped_before_the_engine_had_it() -> None:
    """Then it is settled at its likely cost, or leaving early would be free."""
    assert call().used is None
    uncounted = call()
    uncounted.work.begin(SimpleNamespace(prompt_len=7, request_index=0, stats=None))
    await answered(uncounted, 200)
    assert uncounted.used is None
