"""What uploads leave in the store goes when nobody needs it, wherever a process died; large files come whole later."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest
from sqlalchemy import text

from deploy.local.objectstore import LocalObjectStore
from service.contracts.ids import FileId, ProjectId
from service.contracts.layout import file_key, project_prefix
from service.contracts.store import ObjectStore
from service.files import sweep as files
from service.settings import ServiceSettings
from service.uploads import background, parts
from service.uploads.sweep import GRACE, forget, sweep
from tests.conftest import wait_until
from tests.service.conftest import Service

NOW = timedelta(0)
LINE = b'{"prompt":"a","completion":"b"}\n'
LARGE = 6_000_000


@pytest.fixture(scope="module")
def service_settings(service_settings: ServiceSettings) -> ServiceSettings:
    return service_settings.model_copy(update={"foreground_bytes": LARGE - 1})


@pytest.fixture
def tenant(make_project: Callable[[str], tuple[str, str]], request: pytest.FixtureRequest) -> tuple[str, str]:
    return make_project(request.node.name)


@pytest.fixture
def api(client: Callable[[str], openai.OpenAI], tenant: tuple[str, str]) -> openai.OpenAI:
    return client(tenant[1])


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Nothing is put together in the background until the given function is called."""

    async def nothing(*_: object) -> bool:
        return False

    assemble_next = background.assemble_next
    monkeypatch.setattr(background, "assemble_next", nothing)
    return lambda: monkeypatch.setattr(background, "assemble_next", assemble_next)


def begun(api: openai.OpenAI, *contents: bytes, purpose: Any = "user_data") -> tuple[str, list[str]]:
    size = sum(len(content) for content in contents)
    upload = api.uploads.create(bytes=size, filename="f", mime_type="text/jsonl", purpose=purpose)
    return upload.id, [api.uploads.parts.create(upload.id, data=content).id for content in contents]


def stored(service: Service, tenant: tuple[str, str]) -> list[str]:
    return service.resources.store.keys(project_prefix(ProjectId(tenant[0])))


def swept(service: Service, grace: timedelta = NOW) -> int:
    return service.call(sweep(service.resources, grace))


def execute(service: Service, statement: str, **values: Any) -> Any:
    async def run() -> Any:
        async with service.resources.database.control() as session:
            return await session.execute(text(statement), values)

    return service.call(run())


def test_parts_stay_while_the_upload_is_pending(service: Service, api: openai.OpenAI, tenant: tuple[str, str]) -> None:
    begun(api, b"abc")
    assert swept(service) == 0
    assert len(stored(service, tenant)) == 1


@pytest.mark.parametrize("end", ["cancelled", "expired", "completed"])
def test_parts_go_when_the_upload_is_over(
    service: Service, api: openai.OpenAI, tenant: tuple[str, str], end: str
) -> None:
    upload, ids = begun(api, b"abc", b"def")
    if end == "cancelled":
        api.uploads.cancel(upload)
    elif end == "expired":
        execute(service, "update uploads set expires_at = now() where id = :id", id=upload)
    else:
        api.uploads.complete(upload, part_ids=ids)
    if end != "cancelled":
        assert swept(service, GRACE) == 0
    assert swept(service) == 1
    left = [file_key(ProjectId(tenant[0]), FileId(file.id)) for file in api.files.list()]
    assert stored(service, tenant) == left
    assert len(left) == (end == "completed")
    assert execute(service, "select 1 from upload_parts where upload_id = :id", id=upload).all() == []
    assert swept(service) == 0
    if end == "completed":
        assert api.uploads.complete(upload, part_ids=ids).status == "completed"


def test_a_part_whose_process_died_is_none_and_goes_with_the_others(
    service: Service, api: openai.OpenAI, tenant: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: object) -> bool:
        raise RuntimeError("the process died here")

    upload, ids = begun(api, b"abc")
    with monkeypatch.context() as patch:
        patch.setattr(parts, "_publish", killed)
        with pytest.raises(openai.InternalServerError):
            api.uploads.parts.create(upload, data=b"def")
    assert len(stored(service, tenant)) == 2
    (lost,) = {key.rsplit("/", 1)[1] for key in stored(service, tenant)} - set(ids)
    with pytest.raises(openai.BadRequestError):
        api.uploads.complete(upload, part_ids=[lost])
    api.uploads.cancel(upload)
    assert swept(service) == 0, "its writer may still be at it"

    async def age() -> None:
        async with service.resources.database.tenant(ProjectId(tenant[0])) as session:
            statement = "update upload_parts set created_at = now() - interval '2 hours' where id = :id"
            await session.execute(text(statement), {"id": lost})

    service.call(age())
    assert swept(service) == 1
    assert stored(service, tenant) == []


def test_a_part_that_comes_when_all_is_over_leaves_nothing(
    service: Service, api: openai.OpenAI, tenant: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, _ = begun(api, b"abc")
    publish = parts._publish

    async def late(resources: Any, tenant: Any, row: Any, attempt: Any) -> Any:
        async with resources.database.control() as session:
            await session.execute(text("update uploads set status = 'cancelled' where id = :id"), {"id": upload})
        return await publish(resources, tenant, row, attempt)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "_publish", late)
        with pytest.raises(openai.BadRequestError) as caught:
            api.uploads.parts.create(upload, data=b"def")
    assert caught.value.code == "upload_ended"
    assert len(stored(service, tenant)) == 1


def test_what_a_refused_completion_stored_goes(service: Service, api: openai.OpenAI, tenant: tuple[str, str]) -> None:
    upload, ids = begun(api, LINE + b"{\n" + LINE, purpose="fine-tune")
    with pytest.raises(openai.BadRequestError):
        api.uploads.complete(upload, part_ids=ids)
    api.uploads.cancel(upload)
    swept(service)
    service.call(files.sweep(service.resources, NOW))
    assert stored(service, tenant) == []


def test_a_large_file_is_put_together_afterwards(
    service: Service, api: openai.OpenAI, tenant: tuple[str, str], idle: Callable[[], None]
) -> None:
    content = LINE * (LARGE // len(LINE) + 1)
    upload, ids = begun(api, content[:4_000_001], content[4_000_001:], purpose="fine-tune")
    done = api.uploads.complete(upload, part_ids=ids)
    assert done.file is not None
    assert (done.status, done.file.status, done.file.bytes) == ("completed", "uploaded", len(content))
    for call in (api.files.content, lambda file: api.get(f"/files/{file}/validation", cast_to=object)):
        with pytest.raises(openai.InternalServerError) as caught:
            call(done.file.id)
        assert (caught.value.status_code, caught.value.code) == (503, "file_not_ready")
    waiting = api.fine_tuning.jobs.create(model="weft-tiny", training_file=done.file.id)
    assert waiting.status == "validating_files"
    assert swept(service) == 0
    idle()
    file = api.files.wait_for_processing(done.file.id, poll_interval=0.1, max_wait_seconds=60)
    assert (file.status, file.status_details) == ("processed", None)
    assert api.files.content(file.id).read() == content
    assert api.uploads.complete(upload, part_ids=ids).file == file
    report: Any = api.get(f"/files/{file.id}/validation", cast_to=object)
    assert (report["lines"], report["problems"]) == (len(content) // len(LINE), [])
    wait_until(lambda: swept(service) == 1, what="the parts are swept")
    assert stored(service, tenant) == [file_key(ProjectId(tenant[0]), FileId(file.id))]


@pytest.mark.parametrize("fault", ["bad line", "md5", "lost part"])
def test_a_large_file_that_cannot_be_used_says_why(
    service: Service, api: openai.OpenAI, tenant: tuple[str, str], idle: Callable[[], None], fault: str
) -> None:
    content = LINE * 2 + (b"{\n" if fault == "bad line" else b"") + LINE * (LARGE // len(LINE))
    upload, ids = begun(api, content, purpose="fine-tune")
    done = api.uploads.complete(upload, part_ids=ids, md5="0" * 32 if fault == "md5" else openai.omit)
    assert done.file is not None
    if fault == "lost part":
        service.resources.store.delete(stored(service, tenant))
    idle()
    file = api.files.wait_for_processing(done.file.id, poll_interval=0.1, max_wait_seconds=60)
    assert file.status == "error"
    expected = {"bad line": "line 3: is not valid JSON", "md5": "MD5", "lost part": "upload it again"}
    assert expected[fault] in (file.status_details or "")


def test_a_large_file_that_was_deleted_meanwhile_leaves_nothing(
    service: Service, api: openai.OpenAI, tenant: tuple[str, str], idle: Callable[[], None]
) -> None:
    upload, ids = begun(api, b"x" * LARGE)
    file = api.uploads.complete(upload, part_ids=ids).file
    assert file is not None
    api.files.delete(file.id)
    service.call(files.sweep(service.resources, NOW))
    idle()

    def nothing_is_left() -> bool:
        swept(service)
        return stored(service, tenant) == []

    wait_until(nothing_is_left, what="the upload is over and its part gone")


def test_whoever_put_a_large_file_together_and_died_is_followed(
    service: Service, api: openai.OpenAI, idle: Callable[[], None]
) -> None:
    upload, ids = begun(api, b"x" * LARGE)
    file = api.uploads.complete(upload, part_ids=ids).file
    assert file is not None
    assert service.call(background._claim(service.resources)).id == upload
    assert service.call(background._claim(service.resources)) is None, "it is held"
    execute(service, "update uploads set assembling_until = now() where id = :id", id=upload)
    idle()
    assert api.files.wait_for_processing(file.id, poll_interval=0.1, max_wait_seconds=60).status == "processed"


def test_objects_that_were_never_whole_are_forgotten_by_the_store(service: Service, tenant: tuple[str, str]) -> None:
    store: Any = service.resources.store
    key = f"{project_prefix(ProjectId(tenant[0]))}files/file-x"
    begun = store._client.create_multipart_upload(Bucket=store._bucket, Key=key)["UploadId"]
    part = {"Bucket": store._bucket, "Key": key, "UploadId": begun, "PartNumber": 1}
    store._client.upload_part(**part, Body=b"x" * 1000)
    prefix = project_prefix(ProjectId(tenant[0]))
    assert store.abort_stale_puts(prefix, datetime.now(UTC) - timedelta(hours=1)) == 0
    assert store.abort_stale_puts(prefix, datetime.now(UTC) + timedelta(hours=1)) == 1
    assert store.abort_stale_puts(prefix, datetime.now(UTC) + timedelta(hours=1)) == 0


def test_uploads_long_over_are_forgotten(service: Service, api: openai.OpenAI) -> None:
    upload, _ = begun(api, b"abc")
    api.uploads.cancel(upload)
    swept(service)
    execute(service, "update uploads set purged_at = now() - interval '31 days' where id = :id", id=upload)
    service.call(forget(service.resources))
    with pytest.raises(openai.NotFoundError):
        api.uploads.cancel(upload)


def test_a_bucket_in_which_nothing_was_begun_has_nothing_to_forget(local_store: LocalObjectStore) -> None:
    settings = local_store.settings.model_copy(update={"bucket": "untouched"})
    store: Any = ObjectStore(settings)
    store._client.create_bucket(Bucket=settings.bucket)
    assert store.abort_stale_puts("", datetime.now(UTC)) == 0
