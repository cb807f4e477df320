"""The generated secrets of one data folder, in `secrets.json` (0600). Made once, never printed."""

import os
import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from service.contracts.ids import random_base62


class Secrets(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    postgres_password: str
    owner_password: str
    api_password: str
    control_password: str
    store_access_key: str
    store_secret_key: str
    admin_key: str
    worker_token: str
    replica_token: str
    secret: str


def load_or_create(data: Path) -> Secrets:
    """The folder's secrets. Written whole or not at all, so a kill in between leaves no half file."""
    path = data / "secrets.json"
    if path.exists():
        return Secrets.model_validate_json(path.read_bytes())
    made = Secrets(
        postgres_password=secrets.token_hex(24),
        owner_password=secrets.token_hex(24),
        api_password=secrets.token_hex(24),
        control_password=secrets.token_hex(24),
        store_access_key=random_base62(20),
        store_secret_key=secrets.token_hex(24),
        admin_key=f"sk-weft-admin-{random_base62(43)}",
        worker_token=f"weft-worker-{random_base62(43)}",
        replica_token=f"weft-replica-{random_base62(43)}",
        secret=secrets.token_hex(32),
    )
    write_private(path, made.model_dump_json(indent=1))
    return made


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, atomically."""
    scratch = path.with_suffix(".tmp")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(path)
