"""How far a transfer is, in a terminal; nothing anywhere else."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from weft.cli.commands import Session

if TYPE_CHECKING:
    from weft.resources.uploading import OnProgress, Progress


@contextmanager
def shown(session: Session, what: str) -> "Generator[OnProgress | None]":
    """What a transfer is to tell its progress to."""
    if session.json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def tell(progress: "Progress") -> None:
            bar.update(task, completed=progress.done, total=progress.total)

        yield tell
