"""Reads the folder the preparer wrote: rows from memory-mapped Arrow files.

The folder is a `datasets` folder. It is read with pyarrow alone, because importing `datasets` would cost this process
60 MB and two seconds for the few lines below. Arrays go to numpy by DLPack: pyarrow's own `to_numpy` imports pandas
where that is installed, half a second for the first job to wait.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.engine.plan import Row


class RowFile:
    """Random access to rows without holding them in memory."""

    def __init__(self, directory: Path) -> None:
        files = json.loads((directory / "state.json").read_bytes())["_data_files"]
        tables = [pa.ipc.open_stream(pa.memory_map(str(directory / f["filename"]))).read_all() for f in files]
        table = pa.concat_tables(tables)
        self._ids: Any = table.column("input_ids")
        self._weights: Any = table.column("weights")

    @property
    def largest_token(self) -> int:
        return max((int(np.from_dlpack(part.values).max()) for part in self._ids.chunks if len(part)), default=0)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.concatenate([np.diff(np.from_dlpack(part.offsets)) for part in self._ids.chunks])

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.lengths.max(initial=0))

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Row:
        return Row(np.from_dlpack(self._ids[index].values), np.from_dlpack(self._weights[index].values))
