"""Files on their way from the service to a local folder: whole and as announced, or not there at all."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from weft.errors import DamagedDownload
from weft.resources.uploading import Meter
from weft.types.transfers import AdapterExport, ExportedFile


class NewFile:
    """Written beside its place and put there in one step once it is what was announced; nothing remains otherwise."""

    def __init__(self, place: Path, announced: ExportedFile, meter: Meter) -> None:
        self._place, self._announced, self._meter = place, announced, meter
        self._digest = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> "NewFile":
        self._place.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(prefix=f".{self._place.name}.", dir=self._place.parent)
        self._file, self._partial = os.fdopen(number, "wb"), Path(name)
        return self

    def write(self, piece: bytes) -> None:
        self._digest.update(piece)
        self._size += len(piece)
        self._file.write(piece)
        self._meter.add(len(piece))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if error is None:
                self._check()
                self._partial.chmod(0o666 & ~_umask())
                self._partial.replace(self._place)
        finally:
            self._partial.unlink(missing_ok=True)

    def _check(self) -> None:
        if (self._size, self._digest.hexdigest()) != (self._announced.bytes, self._announced.sha256):
            raise DamagedDownload(f"{self._announced.path} did not arrive as the service announced it; try again.")


class NewFolder:
    """A folder that appears under its name only when everything is in it. Raises FileExistsError where it exists."""

    def __init__(self, place: str | os.PathLike[str]) -> None:
        self._place = Path(place)

    def __enter__(self) -> Path:
        if self._place.exists() and (not self._place.is_dir() or any(self._place.iterdir())):
            raise FileExistsError(f"{self._place} exists already and is not an empty folder")
        self._place.parent.mkdir(parents=True, exist_ok=True)
        self._partial = Path(tempfile.mkdtemp(prefix=f".{self._place.name}.", dir=self._place.parent))
        return self._partial

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._partial.chmod(0o777 & ~_umask())
                # Replaces an empty folder in one step; one that was filled meanwhile is left alone, with an error.
                self._partial.rename(self._place)
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)


def announced(exported: AdapterExport) -> list[ExportedFile]:
    """The export's files. Raises DamagedDownload where one has a name that would leave the folder."""
    for file in exported.files:
        parts = file.path.replace("\\", "/").split("/")
        if ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
            raise DamagedDownload(f"The service announced a file of the name {file.path!r}; nothing was written.")
    return exported.files


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
