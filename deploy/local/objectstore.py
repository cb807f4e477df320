"""The embedded S3 endpoint: `rclone serve s3` over a folder. Runs in the foreground as somebody's child.

`--vfs-cache-mode off` on purpose: every other mode acknowledges a PUT before the object is in the folder. rclone
ignores conditional PUTs and SHA-256 checksums, so Weft verifies its own hashes on every read. That makes rclone's MD5
of each object at its first GET, and of the bytes of every GET, waste: it took most of the time to a large cold adapter.
"""

import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from deploy.local.secrets import Secrets
from service.contracts.store import StoreSettings

BUCKET = "weft"


@dataclass(frozen=True)
class LocalObjectStore:
    data: Path
    port: int
    secrets: Secrets

    @property
    def argv(self) -> list[str]:
        return [
            binary(), "serve", "s3", str(self.data), "--config", "/dev/null", "--addr", f"127.0.0.1:{self.port}",
            "--vfs-cache-mode", "off", "--no-checksum", "--etag-hash", "", "--log-level", "NOTICE",
        ]  # fmt: skip

    @property
    def env(self) -> dict[str, str]:
        """The credentials go by environment: arguments are visible to every user of the machine."""
        return {"RCLONE_AUTH_KEY": f'"{self.secrets.store_access_key},{self.secrets.store_secret_key}"'}

    @property
    def settings(self) -> StoreSettings:
        return StoreSettings.model_validate(
            {
                "endpoint": f"http://127.0.0.1:{self.port}",
                "bucket": BUCKET,
                "access_key": self.secrets.store_access_key,
                "secret_key": self.secrets.store_secret_key,
            }
        )


def prepare(data: Path, port: int, secrets: Secrets) -> LocalObjectStore:
    """A folder of the bucket's name is the bucket."""
    (data / BUCKET).mkdir(parents=True, exist_ok=True, mode=0o700)
    return LocalObjectStore(data, port, secrets)


def binary() -> str:
    """The rclone that the package installed beside this Python, else the one on the path."""
    beside = Path(sysconfig.get_path("scripts")) / "rclone"
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise RuntimeError("rclone is not installed; install the project's `local` extra")
    return found
