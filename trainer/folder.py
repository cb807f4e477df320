"""Folders that exist whole or not at all, however the process ends, and tensor files in them.

What the folders hold and mean is their writers' business.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yields a new folder beside `target` to fill, which takes the name `target` once the block ends without an error.

    Every file reaches the disk before the name does, so a folder called `target` is complete even after a power cut.
    A `target` from an earlier try is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    replaced = target.with_name(f".{target.name}.replaced")
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for path in sorted(partial.rglob("*")):
            _sync(path)
        _sync(partial)
        # Deleting takes many steps: it must not be seen half done under the target's name.
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
        _sync(target.parent)
    finally:
        for folder in (partial, replaced):
            shutil.rmtree(folder, ignore_errors=True)


def save_tensors(path: Path, tensors: "dict[str, Tensor]") -> None:
    """Writes a safetensors file. Raises OSError where the disk does not take it, as every other write does."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
