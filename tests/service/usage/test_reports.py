"""Usage and costs through the stock SDK, from rows of known times."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx2
import openai
import pytest
from sqlalchemy import text

from service.contracts.ids import ProjectId
from service.settings import ServiceSettings
from service.usage.ledger import UsageEntry, record
from tests.service.conftest import Service
from tests.service.stage import Stage

DAY = datetime(2026, 3, 2, tzinfo=UTC)
START = int(DAY.timestamp())
MODEL = "ft:weft-tiny:acme:demo:00000000"


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    prices = {
        "input_price_per_million_tokens": {"weft-tiny": 2.0},
        "output_price_per_million_tokens": {"weft-tiny": 8.0},
        "training_price_per_million_tokens": {"weft-tiny": 25.0},
        "storage_price_per_gigabyte_month": 0.3,
    }
    return service_settings.model_copy(update=prices)


@pytest.fixture(scope="module")
def sdk(service: Service) -> Iterator[openai.OpenAI]:
    key = service.settings.admin_key.get_secret_value()
    with openai.OpenAI(admin_api_key=key, base_url=f"{service.url}/v1", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def projects(service: Service) -> tuple[ProjectId, ProjectId]:
    """Two projects: the first used on two days by two keys and trained, and keeps a file; the second used once."""
    stage = Stage(service.resources, itertools.count())
    first, second = service.call(stage.project()), service.call(stage.project())
    hours = iter(range(100))

    def row(project: str, day: int, kind: str, model: str, key: str | None, *tokens: int) -> UsageEntry:
        when = DAY + timedelta(days=day, hours=next(hours) % 20)
        counts = dict(zip(("prompt_tokens", "completion_tokens", "trained_tokens"), tokens, strict=False))
        return UsageEntry(f"r{next(hours)}", project, kind, model, key, created_at=when, **counts)  # type: ignore[arg-type]

    rows = [
        row(first, 0, "completion", MODEL, "key_a", 1_000_000, 500_000),
        row(first, 0, "completion", "weft-tiny", "key_b", 10, 20),
        row(first, 2, "completion", MODEL, "key_a", 1, 2),
        row(first, 2, "training", "weft-tiny", None, 0, 0, 2_000_000),
        row(second, 0, "completion", "weft-tiny", "key_c", 100, 200),
    ]

    async def put() -> None:
        async with service.resources.database.control() as session:
            await record(session, rows)
        file = await stage.file(first)
        async with service.resources.database.control() as session:
            moved = "update files set bytes = 1000000000, created_at = :at, purged_at = :gone where id = :id"
            times = {"at": DAY + timedelta(hours=12), "gone": DAY + timedelta(days=1, hours=6), "id": file}
            await session.execute(text(moved), times)

    service.call(put())
    return first, second


def test_completions_are_summed_by_day(sdk: openai.OpenAI, projects: tuple[str, str]) -> None:
    usage = sdk.admin.organization.usage.completions(start_time=START, end_time=START + 3 * 86400)
    assert [bucket.start_time for bucket in usage.data] == [START + day * 86400 for day in range(3)]
    (day,) = usage.data[0].results
    assert day.object == "organization.usage.completions.result"
    assert (day.input_tokens, day.output_tokens, day.num_model_requests) == (1_000_110, 500_220, 3)
    assert usage.data[1].results == []
    assert (usage.has_more, usage.next_page) == (False, None)


def test_they_are_grouped_and_filtered(sdk: openai.OpenAI, projects: tuple[str, str]) -> None:
    usage = sdk.admin.organization.usage.completions(
        start_time=START, end_time=START + 86400, project_ids=[projects[0]], group_by=["api_key_id", "model"]
    )
    found = [(row.api_key_id, row.model, row.input_tokens) for row in usage.data[0].results]  # type: ignore[union-attr]
    assert found == [("key_a", MODEL, 1_000_000), ("key_b", "weft-tiny", 10)]


def test_they_come_in_pages(sdk: openai.OpenAI, projects: tuple[str, str]) -> None:
    seen, page = [], None
    while True:
        more = {} if page is None else {"page": page}
        usage = sdk.admin.organization.usage.completions(
            start_time=START, end_time=START + 86400, bucket_width="1h", limit=10, **more
        )
        seen += [bucket.start_time for bucket in usage.data]
        page = usage.next_page
        if not usage.has_more:
            break
    assert seen == [START + hour * 3600 for hour in range(24)]


def test_training_is_a_meter_of_its_own(admin: httpx2.Client, projects: tuple[str, str]) -> None:
    query = {"start_time": START, "end_time": START + 3 * 86400, "group_by[]": ["project_id"]}
    usage = admin.get("/organization/usage/fine_tuning", params=query).json()
    (row,) = [row for bucket in usage["data"] for row in bucket["results"]]
    assert (row["trained_tokens"], row["num_jobs"], row["project_id"]) == (2_000_000, 1, projects[0])


def test_storage_is_counted_for_as_long_as_it_was_taken(admin: httpx2.Client, projects: tuple[str, str]) -> None:
    query = {"start_time": START, "end_time": START + 3 * 86400, "project_ids[]": [projects[0]]}
    usage = admin.get("/organization/usage/storage", params=query).json()
    found = [[row["byte_seconds"] / 3600e9 for row in bucket["results"]] for bucket in usage["data"]]
    assert found == [[12], [6], []]
    assert usage["data"][0]["results"][0]["average_bytes"] == 500_000_000


def test_costs_are_usage_times_the_price_list(sdk: openai.OpenAI, projects: tuple[str, str]) -> None:
    costs = sdk.admin.organization.usage.costs(
        start_time=START, end_time=START + 3 * 86400, project_ids=[projects[0]], group_by=["line_item"]
    )
    rows = {
        (day, row.line_item): (row.amount and row.amount.value, row.quantity)  # type: ignore[union-attr]
        for day, bucket in enumerate(costs.data)
        for row in bucket.results
    }
    assert rows[0, "weft-tiny, input_tokens"] == pytest.approx((2.00002, 1.00001))
    assert rows[0, "weft-tiny, output_tokens"] == pytest.approx((4.00016, 0.50002))
    assert rows[2, "weft-tiny, trained_tokens"] == pytest.approx((50.0, 2.0))
    assert rows[1, "file storage"] == pytest.approx((0.3 * 6 / 720, 6 / 720))
    plain = sdk.admin.organization.usage.costs(start_time=START, end_time=START + 86400, project_ids=[projects[0]])
    (whole,) = plain.data[0].results
    assert whole.amount.value == pytest.approx(2.00002 + 4.00016 + 0.3 * 12 / 720)  # type: ignore[union-attr]
    assert (whole.line_item, whole.quantity) == (None, None)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({}, "start_time"),
        ({"start_time": -1}, "start_time"),
        ({"start_time": START, "end_time": START}, "end_time"),
        ({"start_time": START, "bucket_width": "1w"}, "bucket_width"),
        ({"start_time": START, "limit": 181}, "limit"),
        ({"start_time": START, "page": "x"}, "page"),
        ({"start_time": START, "group_by[]": "secret"}, "group_by[].0"),
    ],
)
def test_a_bad_question_names_its_field(admin: httpx2.Client, query: dict[str, object], param: str) -> None:
    answer = admin.get("/organization/usage/completions", params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
