"""Room on this machine's disk for bodies that lie there while they are taken in: how many at once, how large, of whom.

A body is counted with what its request announces, before any of it is read. Each process has room of its own.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from service.contracts.ids import ProjectId
from service.errors import RateLimited, Unavailable
from service.settings import ServiceSettings

IN_MEMORY_BYTES = 1 << 20
"""Smaller forms never lie on the disk."""
RETRY_SECONDS = 2.0


class Spooling:
    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._bodies: Counter[ProjectId] = Counter()
        self._bytes: Counter[ProjectId] = Counter()

    @contextmanager
    def room(self, project: ProjectId, announced: int | None) -> Generator[None]:
        """For one body, until the end of the block.

        Raises RateLimited where the project takes up too much at once, Unavailable where all projects together do or
        the disk is full.
        """
        size = self._settings.max_unannounced_bytes if announced is None else announced
        self._require_share(project, size)
        self._require_room(size)
        self._bodies[project] += 1
        self._bytes[project] += size
        try:
            yield
        finally:
            self._bodies[project] -= 1
            self._bytes[project] -= size
            if not self._bodies[project]:
                del self._bodies[project], self._bytes[project]

    def _require_share(self, project: ProjectId, size: int) -> None:
        limits = self._settings
        bodies, taken = self._bodies[project], self._bytes[project]
        # The first is as large as its route lets it be.
        if bodies >= limits.max_project_uploads or (bodies and taken + size > limits.max_project_spool_bytes):
            raise RateLimited(
                f"Your project is sending {bodies} files or parts already; wait until one is there.",
                code="too_many_uploads",
                headers={"Retry-After": f"{RETRY_SECONDS:g}"},
            )

    def _require_room(self, size: int) -> None:
        limits = self._settings
        taken = self._bytes.total()
        crowded = self._bodies.total() >= limits.max_uploads or (taken and taken + size > limits.max_spool_bytes)
        if not crowded and size > IN_MEMORY_BYTES:
            # What the others have written by now is counted twice, to be safe.
            crowded = shutil.disk_usage(tempfile.gettempdir()).free < taken + size + limits.spool_reserve_bytes
        if crowded:
            raise Unavailable(
                "The server has no room for this upload just now; try again.",
                code="storage_unavailable",
                retry_after=RETRY_SECONDS,
            )
