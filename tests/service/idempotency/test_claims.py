"""A claim on a request outlives no process, is not lost while its holder lives, and ends with an answer or free."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from service.contracts.ids import ProjectId
from service.errors import ApiError
from service.idempotency import claim as module
from service.idempotency.answers import KEYED, Replayed, Request
from service.idempotency.claim import MAX_ANSWER_BYTES, Claim
from tests.service.conftest import Service
from tests.service.idempotency.conftest import Owner
from tests.service.stage import Stage


class Contest:
    """Claims of one request."""

    def __init__(self, service: Service, stage: Stage, project: ProjectId) -> None:
        self._service, self._stage, self._project = service, stage, project

    def claim(self, body: bytes = b"hash") -> Claim:
        request = Request("caller", "POST", "/", body, "key", False, "secret")
        return Claim(self._service.resources.database, self._project, request, KEYED)

    async def outcome(self, body: bytes = b"hash") -> str | bytes:
        """What another attempt meets: an error's code, an answer, or nothing."""
        try:
            async with self.claim(body):
                return "free"
        except ApiError as error:
            return str(error.code)
        except Replayed as answered:
            return answered.body

    async def age(self, seconds: float) -> None:
        query = text("update recorded_answers set expires_at = expires_at - make_interval(secs => :seconds)")
        async with self._service.resources.database.control() as session:
            await session.execute(query, {"seconds": seconds})


@pytest.fixture
def contest(service: Service, stage: Stage, owner: Owner) -> Contest:
    return Contest(service, stage, owner.project)


def test_a_claim_keeps_others_out_until_there_is_an_answer(service: Service, contest: Contest) -> None:
    async def run() -> list[Any]:
        async with contest.claim() as claim:
            seen = [await contest.outcome(), await contest.outcome(b"other")]
            await claim.settle(200, b"answer")
        return [*seen, await contest.outcome()]

    assert service.call(run()) == ["idempotency_in_flight", "idempotency_key_reused", b"answer"]


def test_what_failed_is_free(service: Service, contest: Contest) -> None:
    async def run() -> str | bytes:
        with pytest.raises(ZeroDivisionError):
            async with contest.claim():
                raise ZeroDivisionError
        return await contest.outcome()

    assert service.call(run()) == "free"


@pytest.mark.parametrize("answer", [None, b"x" * (MAX_ANSWER_BYTES + 1)])
def test_what_is_not_kept_is_known_to_have_been(service: Service, contest: Contest, answer: bytes | None) -> None:
    async def run() -> str | bytes:
        async with contest.claim() as claim:
            await claim.settle(200, answer)
        return await contest.outcome()

    assert service.call(run()) == "idempotency_answer_not_kept"


def test_a_killed_processs_claim_ends_and_what_it_still_says_changes_nothing(
    service: Service, contest: Contest
) -> None:
    async def run() -> list[Any]:
        lost = contest.claim()
        await lost.__aenter__()
        seen = [await contest.outcome()]
        await contest.age(module.HELD.total_seconds())
        async with contest.claim() as next_one:
            await lost.settle(200, b"late")
            await lost.__aexit__(None, None, None)
            seen.append(await contest.outcome())
            await next_one.settle(200, b"answer")
        return [*seen, await contest.outcome()]

    assert service.call(run()) == ["idempotency_in_flight", "idempotency_in_flight", b"answer"]


def test_a_claim_lasts_as_long_as_the_work(service: Service, contest: Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.05)

    async def run() -> str | bytes:
        async with contest.claim():
            await contest.age(module.HELD.total_seconds() - 0.5)
            await asyncio.sleep(0.7)
            return await contest.outcome()

    assert service.call(run()) == "idempotency_in_flight"


def test_of_many_at_once_one_gets_it(service: Service, contest: Contest) -> None:
    async def run() -> list[str | bytes]:
        async def work() -> str | bytes:
            try:
                async with contest.claim():
                    await asyncio.sleep(0.5)
                    return "worked"
            except ApiError as error:
                return str(error.code)

        return list(await asyncio.gather(*(work() for _ in range(10))))

    outcomes = service.call(run())
    assert sorted(outcomes) == ["idempotency_in_flight"] * 9 + ["worked"]
