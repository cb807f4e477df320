"""A large upload passes through a real service process that stays small, in the foreground and in the background."""

from collections.abc import Iterator

import openai
import psutil
import pytest

from service.settings import ServiceSettings
from tests.service.files.test_hostile import MEGABYTE, Cost, Victim
from tests.service.test_app_process import serving, variables

PART = 64 * MEGABYTE
PARTS = 4
LINE = b'{"prompt":"' + b"a" * 4000 + b'","completion":"b"}\n'


@pytest.fixture(scope="module")
def victim(service_settings: ServiceSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    environment = {**variables(service_settings), "WEFT_FOREGROUND_BYTES": str(PARTS * PART)}
    with serving(environment, tmp_path_factory.mktemp("large") / "log") as process:
        yield Victim(psutil.Process(process.pid), service_settings.port, environment["WEFT_ADMIN_KEY"])


@pytest.mark.parametrize("parts", [PARTS, PARTS + 1], ids=["in the foreground", "in the background"])
def test_a_large_upload_passes_without_filling_memory(victim: Victim, parts: int) -> None:
    key = victim.headers["authorization"].removeprefix("Bearer ")
    part = (LINE * (PART // len(LINE) + 1))[:PART]
    api = openai.OpenAI(api_key=key, base_url=f"http://127.0.0.1:{victim.port}/v1", max_retries=0)
    with api, Cost(victim.process) as cost:
        upload = api.uploads.create(bytes=parts * PART, filename="f", mime_type="text/plain", purpose="user_data")
        ids = [api.uploads.parts.create(upload.id, data=part).id for _ in range(parts)]
        file = api.uploads.complete(upload.id, part_ids=ids).file
        assert file is not None
        assert api.files.wait_for_processing(file.id, poll_interval=0.2).status == "processed"
    assert cost.bytes <= 100 * MEGABYTE
