"""A folder that PEFT has saved, on its way to the service: both files or none, under one account of the progress.

The service reads them once. They are deleted when the import has ended, and by the service itself after a day where
nobody is there any more to do it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openai.types.file_create_params import ExpiresAfter

from weft.resources.uploading import OnProgress, Progress

PUSHED = ("adapter_config.json", "adapter_model.safetensors")
PURPOSE = "user_data"
EXPIRY: ExpiresAfter = {"anchor": "created_at", "seconds": 86_400}


@dataclass(frozen=True)
class SavedAdapter:
    """The files and their sizes, in the order in which they are sent."""

    files: tuple[tuple[Path, int], ...]

    @classmethod
    def of(cls, folder: str | os.PathLike[str]) -> "SavedAdapter":
        """Raises FileNotFoundError where one of the files is missing."""
        paths = [Path(folder) / name for name in PUSHED]
        return cls(tuple((path, path.stat().st_size) for path in paths))

    def parts(self, on_progress: OnProgress | None) -> Iterator[tuple[Path, OnProgress | None]]:
        """Each file, and what its upload is to tell its own progress to."""
        total, before = sum(size for _, size in self.files), 0
        for path, size in self.files:
            yield path, None if on_progress is None else _shifted(on_progress, before, total)
            before += size


def _shifted(on_progress: OnProgress, before: int, total: int) -> OnProgress:
    return lambda progress: on_progress(Progress(before + progress.done, total))
