"""A process that is told to stop: whoever waits for something to happen is answered at once and goes on elsewhere."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil

from service.settings import ServiceSettings
from tests.conftest import wait_until
from tests.service.stage import open_stage
from tests.service.test_app_process import environment, serving

__all__ = ["environment"]


async def test_a_stop_waits_for_no_reader_of_events_and_no_worker(
    environment: dict[str, str], service_settings: ServiceSettings, tmp_path: Path
) -> None:
    async with open_stage(service_settings) as stage:
        project = await stage.project()
        job, key = await stage.job(project), await stage.key(project)
    base, log, begun = f"http://127.0.0.1:{environment['WEFT_PORT']}", tmp_path / "log", threading.Event()
    with serving(environment, log) as process, ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(_claim, base, service_settings)
        wait_until(lambda: _connections(process.pid, service_settings.port) == 1, what="the worker waits")
        reading = pool.submit(_read, base, job, key, begun)
        assert begun.wait(20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        # uvicorn waits some seconds, then cuts off whatever goes on and says so.
        assert "Cancel" not in log.read_text()
        assert "[DONE]" not in reading.result(10)
        assert waiting.result(10) == 204


def _connections(pid: int, port: int) -> int:
    found = psutil.Process(pid).net_connections("tcp")
    return sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port for each in found)


def _claim(base: str, settings: ServiceSettings) -> int:
    """The status that a worker gets who trains another base, for which there is no job."""
    headers = {"authorization": f"Bearer {settings.worker_token.get_secret_value()}"}
    body = {"worker": "w", "base_model": "other", "base_fingerprint": "0" * 64, "wait_seconds": 30}
    return httpx2.post(f"{base}/internal/leases", json=body, headers=headers, timeout=60).status_code


def _read(base: str, job: str, key: str, begun: threading.Event) -> str:
    url, headers = f"{base}/v1/fine_tuning/jobs/{job}/events?stream=true", {"authorization": f"Bearer {key}"}
    with httpx2.stream("GET", url, headers=headers, timeout=60) as answer:
        text = ""
        for part in answer.iter_text():
            text += part
            begun.set()
    return text
