"""Bytes go when nobody needs them, and not before: deleted files, expired ones, uploads that died half way."""

import io
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import openai
import pytest
from sqlalchemy import text

from service.contracts.ids import FileId, ProjectId
from service.contracts.layout import file_key
from service.contracts.store import ObjectMissing
from service.files import upload
from service.files.sweep import BATCH, GRACE, sweep
from tests.service.conftest import Service

NOW = timedelta(0)
LINES = b'{"prompt":"a","completion":"b"}\n' * 10


@pytest.fixture
def tenant(make_project: Callable[[str], tuple[str, str]], request: pytest.FixtureRequest) -> tuple[str, str]:
    return make_project(request.node.name)


@pytest.fixture
def api(client: Callable[[str], openai.OpenAI], tenant: tuple[str, str]) -> openai.OpenAI:
    return client(tenant[1])


def created(api: openai.OpenAI) -> str:
    return api.files.create(file=("f.jsonl", io.BytesIO(LINES)), purpose="fine-tune").id


def swept(service: Service, grace: timedelta = NOW) -> int:
    return service.call(sweep(service.resources, grace))


def exists(service: Service, tenant: tuple[str, str], file: str) -> bool:
    try:
        return bool(service.resources.store.get(file_key(ProjectId(tenant[0]), FileId(file))))
    except ObjectMissing:
        return False


def execute(service: Service, statement: str, **values: Any) -> None:
    async def run() -> None:
        async with service.resources.database.control() as session:
            await session.execute(text(statement), values)

    service.call(run())


def job_over(service: Service, project: str, status: str, training: str, validation: str | None) -> None:
    async def insert() -> None:
        async with service.resources.database.tenant(ProjectId(project)) as session:
            statement = """
                insert into jobs (id, project_id, status, model, spec, training_file, validation_file)
                values (:project || :status, :project, :status, 'm', '{}', :training, :validation)
                """
            values = {"project": project, "status": status, "training": training, "validation": validation}
            await session.execute(text(statement), values)

    service.call(insert())


def test_a_live_file_stays(service: Service, api: openai.OpenAI, tenant: tuple[str, str]) -> None:
    file = created(api)
    swept(service)
    assert exists(service, tenant, file)


def test_a_deleted_files_bytes_go_after_a_while_and_once(
    service: Service, api: openai.OpenAI, tenant: tuple[str, str]
) -> None:
    file = created(api)
    api.files.delete(file)
    assert swept(service, GRACE) == 0
    assert exists(service, tenant, file)
    assert swept(service) == 1
    assert not exists(service, tenant, file)
    assert swept(service) == 0


def test_an_expired_files_bytes_go(service: Service, api: openai.OpenAI, tenant: tuple[str, str]) -> None:
    file = created(api)
    execute(service, "update files set expires_at = now() where id = :id", id=file)
    assert swept(service) == 1
    assert not exists(service, tenant, file)


@pytest.mark.parametrize("role", ["training", "validation"])
def test_a_job_that_is_not_over_keeps_the_bytes(
    service: Service, api: openai.OpenAI, tenant: tuple[str, str], role: str
) -> None:
    file, other = created(api), created(api)
    used = (file, None) if role == "training" else (other, file)
    for status in ("queued", "succeeded", "failed"):
        job_over(service, tenant[0], status, *used)
    api.files.delete(file)
    for status in ("validating_files", "queued", "running", "paused"):
        execute(service, "update jobs set status = :to where id = :id", to=status, id=f"{tenant[0]}queued")
        assert swept(service) == 0
        assert exists(service, tenant, file)
    execute(service, "update jobs set status = 'cancelled' where id = :id", id=f"{tenant[0]}queued")
    assert swept(service) == 1
    assert not exists(service, tenant, file)


def test_an_upload_that_died_half_way_is_invisible_and_swept(
    service: Service, api: openai.OpenAI, tenant: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: object) -> None:
        raise RuntimeError("the process died here")

    with monkeypatch.context() as patch:
        patch.setattr(upload, "_publish", killed)
        with pytest.raises(openai.InternalServerError):
            created(api)
    assert api.files.list().data == []
    (key,) = service.resources.store.keys(f"t/{tenant[0]}/")
    assert swept(service) == 0, "the upload may still be under way"
    execute(
        service, "update files set deleted_at = deleted_at - interval '1 hour' where project_id = :id", id=tenant[0]
    )
    assert swept(service) == 1
    assert service.resources.store.keys(f"t/{tenant[0]}/") == [], key


def test_an_upload_slower_than_its_reservation_is_told_so(
    service: Service, api: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweeper took the bytes away meanwhile, so the file must not appear."""
    publish = upload._publish

    async def late(resources: Any, tenant: Any, file_id: Any, *more: Any) -> Any:
        async with resources.database.control() as session:
            await session.execute(text("update files set deleted_at = now() where id = :id"), {"id": file_id})
        await sweep(resources, NOW)
        return await publish(resources, tenant, file_id, *more)

    with monkeypatch.context() as patch:
        patch.setattr(upload, "_publish", late)
        with pytest.raises(openai.InternalServerError) as caught:
            created(api)
    assert (caught.value.status_code, caught.value.code) == (503, "storage_unavailable")
    assert api.files.list().data == []


def test_more_than_a_batch_is_swept_batch_by_batch(
    service: Service, api: openai.OpenAI, tenant: tuple[str, str]
) -> None:
    execute_many = """
        insert into files (id, project_id, filename, purpose, bytes, sha256, status, deleted_at)
        select 'file-' || :project || n, :project, 'f', 'batch', 1, 'x', 'processed', now() - interval '1 hour'
        from generate_series(1, :count) as n
        """

    async def insert() -> None:
        async with service.resources.database.tenant(ProjectId(tenant[0])) as session:
            await session.execute(text(execute_many), {"project": tenant[0], "count": BATCH + 1})

    service.call(insert())
    assert [swept(service) for _ in range(3)] == [BATCH, 1, 0]


def test_a_report_goes_with_the_last_file_that_has_the_content(
    service: Service, api: openai.OpenAI, tenant: tuple[str, str]
) -> None:
    first, second = created(api), created(api)

    async def reports() -> int:
        async with service.resources.database.tenant(ProjectId(tenant[0])) as session:
            return await session.scalar(text("select count(*) from file_reports")) or 0

    for file, left in ((first, 1), (second, 0)):
        api.files.delete(file)
        assert swept(service) == 1
        assert service.call(reports()) == left
