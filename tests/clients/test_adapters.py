"""Registered adapters through the SDK: references, promotion with a revision, and folders that arrive whole."""

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.clients.conftest import Tenant, finish, uploaded
from tests.service.conftest import Service
from tests.service.stage import Stage
from weft import AsyncWeft, DamagedDownload, ExportFailed, ImportFailed, WaitTimeout, Weft
from weft.resources.references import Reference, named_alias
from weft.types import AdapterExport, AdapterVersion

WEIGHTS = b"weights" * 1000
CHANGES = ["rollback", "promote", "update", "traffic", "promote"]
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS}


@pytest.fixture(scope="module")
def bot(service: Service, stage: Stage, tenant: Tenant) -> str:
    """An adapter with two versions."""
    name = "bot"
    for number in range(2):
        job = tenant.client.fine_tuning.jobs.create(model="weft-tiny", training_file=uploaded(tenant), seed=number)
        lease = service.call(stage.claim(wait_seconds=5))
        assert lease is not None
        finish(service, stage, lease)
        source: Any = {"type": "job", "job_id": job.id}
        if number == 0:
            tenant.client.adapters.create(name=name, source=source)
        else:
            tenant.client.adapters.versions.create(name, source=source)
    return name


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("bot", Reference("bot", "default", None)),
        ("bot@prod", Reference("bot", "prod", None)),
        ("bot@v12", Reference("bot", None, 12)),
        ("bot@v0", Reference("bot", "v0", None)),
    ],
)
def test_references(reference: str, expected: Reference) -> None:
    assert Reference.of(reference) == expected


@pytest.mark.parametrize("reference", ["", "@prod", "a@@b"])
def test_what_is_no_reference(reference: str) -> None:
    with pytest.raises(ValueError, match="name@alias"):
        Reference.of(reference)


def test_promotion_rollback_and_history(tenant: Tenant, bot: str) -> None:
    adapters = tenant.client.adapters
    adapters.promote(f"{bot}@v1", "prod", if_revision=0, reason="first")
    alias = adapters.promote(f"{bot}@v2", "prod")
    assert (alias.version, alias.revision) == (2, 2)
    with pytest.raises(openai.ConflictError) as lost:
        adapters.promote(f"{bot}@v1", "prod", if_revision=1)
    assert lost.value.code == "revision_mismatch"
    assert adapters.rollback(bot, "prod").version == 1
    changes = [(change.action, change.to_version) for change in adapters.history(bot, alias="prod")]
    assert changes == [("rollback", 1), ("promote", 2), ("promote", 1)]
    adapters.promote(f"{bot}@prod", "stable")
    assert {alias.alias: alias.version for alias in adapters.aliases.list(bot)}["stable"] == 1
    adapters.aliases.delete(bot, "stable")
    assert adapters.retrieve(bot).aliases == {"default": 1, "prod": 1}


def test_a_reference_says_which_alias_goes_back(tenant: Tenant, bot: str) -> None:
    adapters = tenant.client.adapters
    for alias in ("prod", "default"):
        adapters.promote(f"{bot}@v1", alias)
        adapters.promote(f"{bot}@v2", alias)
    assert adapters.rollback(f"{bot}@prod").id == f"{bot}@prod"
    assert adapters.retrieve(bot).aliases == {"default": 2, "prod": 1}
    assert adapters.rollback(bot, reason="too long").alias == "default"
    assert adapters.retrieve(bot).aliases == {"default": 1, "prod": 1}
    assert {change.alias for change in adapters.history(f"{bot}@prod")} == {"prod"}
    assert {change.alias for change in adapters.history(bot)} >= {"prod", "default"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("bot",), ("bot", "default")),
        (("bot@prod",), ("bot", "prod")),
        (("bot", "prod"), ("bot", "prod")),
        (("bot@prod", "prod"), ("bot", "prod")),
    ],
)
def test_an_alias_by_reference(arguments: tuple[str, ...], named: tuple[str, str]) -> None:
    assert named_alias(*arguments) == named


@pytest.mark.parametrize("arguments", [("bot@v3",), ("bot@prod", "stable"), ("@prod",), ("bot@a@b",)])
def test_what_names_no_alias(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"bot|prod"):
        named_alias(*arguments)


def test_a_canary_in_one_call_and_its_guard(tenant: Tenant, bot: str) -> None:
    adapters = tenant.client.adapters
    adapters.promote(f"{bot}@v1", "live")
    split = adapters.split(f"{bot}@live", {1: 90, 2: 10}, reason="canary")
    assert (split.version, [(share.version, share.weight) for share in split.traffic or ()]) == (1, [(1, 90), (2, 10)])
    guarded = adapters.guard(f"{bot}@live", {"max_error_rate": 0.1})
    assert guarded.traffic == split.traffic
    assert guarded.automatic_rollback is not None
    assert guarded.automatic_rollback.to_dict() == {"max_error_rate": 0.1, "min_requests": 20, "window_seconds": 300}
    shadowed = adapters.split(f"{bot}@live", {1: 1}, shadow={"version": 2, "fraction": 0.5})
    assert (shadowed.traffic, shadowed.automatic_rollback) == (None, guarded.automatic_rollback)
    ended = adapters.guard(f"{bot}@live", None)
    assert (ended.automatic_rollback, ended.shadow) == (None, shadowed.shadow)
    with pytest.raises(ValueError, match="at least one"):
        adapters.split(f"{bot}@live", {})
    with pytest.raises(openai.ConflictError):
        adapters.aliases.delete(bot, "live", if_revision=1)
    assert adapters.aliases.delete(bot, "live", if_revision=ended.revision).deleted


def test_a_split_of_traffic_and_a_shadow(tenant: Tenant, bot: str) -> None:
    aliases = tenant.client.adapters.aliases
    split = aliases.set(bot, "canary", version=1, traffic=[{"version": 1, "weight": 9}, {"version": 2, "weight": 1}])
    assert [(share.version, share.weight) for share in split.traffic or ()] == [(1, 9), (2, 1)]
    shadowed = aliases.set(bot, "canary", version=1, shadow={"version": 2, "fraction": 0.5}, if_revision=split.revision)
    assert shadowed.traffic is None
    assert shadowed.shadow is not None
    assert shadowed.shadow.fraction == 0.5
    aliases.delete(bot, "canary")


def test_a_lists_pages_are_walked(tenant: Tenant, bot: str) -> None:
    found = [version.version for version in tenant.client.adapters.versions.list(bot, limit=1)]
    assert found == [2, 1]


def test_raw_and_streamed_responses(tenant: Tenant, bot: str) -> None:
    adapters = tenant.client.adapters
    response = adapters.versions.with_raw_response.retrieve(bot, 1)
    assert response.headers["x-request-id"]
    assert isinstance(response.parse(), AdapterVersion)
    assert adapters.with_raw_response.pin(f"{bot}@default").parse().pinned
    with adapters.with_streaming_response.unpin(f"{bot}@default") as streamed:
        assert streamed.headers["x-request-id"]
        assert not streamed.parse().pinned
    assert adapters.versions.with_raw_response.list(bot, limit=1).parse().has_more
    types = tenant.client.webhook_endpoints.with_raw_response.event_types()
    assert types.parse() == tenant.client.webhook_endpoints.event_types()
    file = uploaded(tenant)
    assert tenant.client.files.with_raw_response.validation(file).parse().ok


def test_what_is_more_than_one_request_has_no_raw_response(tenant: Tenant) -> None:
    raw = tenant.client.adapters.with_raw_response
    assert {"promote", "warm", "pin", "unpin"} <= set(dir(raw))
    assert not {"push", "pull", "versions"} & set(dir(raw))
    with pytest.raises(AttributeError, match="one request"):
        raw.push("folder", "bot")


def test_the_asynchronous_client_does_the_same(tenant: Tenant, bot: str, tmp_path: Path) -> None:
    async def walk() -> None:
        async with AsyncWeft(api_key=tenant.key, base_url=tenant.client.base_url, max_retries=0) as client:
            assert (await client.adapters.retrieve(bot)).latest_version == 2
            assert [version.version async for version in client.adapters.versions.list(bot, limit=1)] == [2, 1]
            assert (await client.adapters.promote(f"{bot}@v2", "next")).version == 2
            split = await client.adapters.split(f"{bot}@next", {2: 3, 1: 1})
            guarded = await client.adapters.guard(f"{bot}@next", {"max_error_rate": 0.5})
            assert guarded.traffic == split.traffic
            await client.adapters.promote(f"{bot}@v1", "next")
            assert (await client.adapters.rollback(f"{bot}@next")).version == 2
            assert [change.action async for change in client.adapters.history(f"{bot}@next")] == CHANGES
            assert (await client.adapters.aliases.delete(bot, "next")).deleted
            assert (await client.adapters.with_raw_response.retrieve(bot)).parse().name == bot
            async with client.adapters.with_streaming_response.list(limit=1) as streamed:
                assert [adapter.name for adapter in (await streamed.parse()).data] == [bot]
            assert len(await client.adapters.pull(f"{bot}@v1", tmp_path / "taken")) >= 2
            with pytest.raises(openai.NotFoundError):
                await client.adapters.retrieve("none")

    asyncio.run(walk())


@pytest.mark.parametrize("reference", ["bot@v1", "bot"])
def test_pull_gives_the_files_that_were_stored(tenant: Tenant, bot: str, tmp_path: Path, reference: str) -> None:
    files = tenant.client.adapters.pull(reference, tmp_path / "taken")
    assert {file.name for file in files} >= set(FILES)
    version = tenant.client.adapters.versions.retrieve(bot, 1)
    assert sum(file.stat().st_size for file in files) >= version.bytes
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


def test_pull_leaves_a_folder_with_something_in_it_alone(tenant: Tenant, bot: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(FileExistsError):
        tenant.client.adapters.pull(f"{bot}@v1", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def exported(**files: bytes) -> AdapterExport:
    described = [
        {"path": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    ]
    fields: dict[str, Any] = {"id": "adexp-1", "status": "succeeded", "format": "peft", "files": described}
    return AdapterExport.model_validate({"adapter": "bot", "version": 1, "created_at": 1, **fields})


class Stored:
    """A service that holds one export, and may send it damaged or not to its end."""

    def __init__(self, content: dict[str, bytes]) -> None:
        self.content = content
        self.asked: list[httpx2.Request] = []
        self.answers: list[Any] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        if "/files/" not in request.url.path:
            return httpx2.Response(200, json=self.answers.pop(0))
        content = self.content[request.url.path.rsplit("/", 1)[1]]
        return httpx2.Response(200, content=self._pieces(content))

    def _pieces(self, content: bytes) -> Iterator[bytes]:
        for start in range(0, len(content), 100):
            piece = content[start : start + 100]
            if piece.startswith(b"cut"):
                raise httpx2.ReadError("cut")
            yield piece

    def client(self) -> Weft:
        http = httpx2.Client(transport=httpx2.MockTransport(self))
        return Weft(api_key="sk-weft-mine", http_client=http, max_retries=0)


@pytest.mark.parametrize("content", [b"x" * 250, b"x" * 199, b"", b"x" * 100 + b"cut" + b"x" * 97])
def test_a_damaged_download_leaves_nothing_behind(content: bytes, tmp_path: Path) -> None:
    stored = Stored({"a": b"x" * 200, "b": content})
    announced = exported(a=b"x" * 200, b=b"y" * 200)
    with pytest.raises((DamagedDownload, httpx2.ReadError)):
        stored.client().adapters.exports.download(announced, tmp_path / "taken")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "c:\\a", "", "a//b", "..\\a"])
def test_a_file_cannot_leave_its_folder(name: str, tmp_path: Path) -> None:
    stored = Stored({})
    with pytest.raises(DamagedDownload):
        stored.client().adapters.exports.download(exported(**{name: b"x"}), tmp_path / "taken")
    assert not stored.asked
    assert list(tmp_path.iterdir()) == []


def test_a_download_tells_its_progress(tmp_path: Path) -> None:
    stored = Stored({"a": b"x" * 250})
    told: list[tuple[int, int]] = []
    announced = exported(a=b"x" * 250)
    stored.client().adapters.exports.download(
        announced, tmp_path / "taken", on_progress=lambda now: told.append((now.done, now.total))
    )
    assert told == [(100, 250), (200, 250), (250, 250)]
    assert (tmp_path / "taken" / "a").read_bytes() == b"x" * 250


def test_failed_transfers_are_errors_that_say_why() -> None:
    problem = {"code": "unsupported_kind", "message": "It is not LoRA."}
    stored = Stored({})
    stored.answers = [
        {"id": "adimp-1", "status": "failed", "adapter": "bot", "error": problem},
        {"id": "adexp-1", "status": "failed", "error": problem},
        {"id": "adexp-1", "status": "expired", "error": None},
    ]
    client = stored.client()
    with pytest.raises(ImportFailed, match="not LoRA") as refused:
        client.adapters.imports.wait("adimp-1")
    assert refused.value.code == "unsupported_kind"
    with pytest.raises(ExportFailed, match="not LoRA"):
        client.adapters.exports.wait("adexp-1")
    with pytest.raises(ExportFailed, match="export it again"):
        client.adapters.exports.wait("adexp-1")


def test_a_transfer_is_waited_for_only_so_long() -> None:
    stored = Stored({})
    stored.answers = [{"id": "adimp-1", "status": "running", "adapter": "bot"}] * 5
    with pytest.raises(WaitTimeout):
        stored.client().adapters.imports.wait("adimp-1", timeout=0.01)
