"""The `openai` package's clients, pointed at a Weft service, with Weft's own resources.

>>> from weft import Weft
>>> client = Weft(base_url=base_url, api_key=api_key)
>>> file = client.files.upload("train.jsonl", purpose="fine-tune")
>>> job = client.fine_tuning.jobs.create_and_wait(model="weft-tiny", training_file=file.id)
>>> job.status
'succeeded'
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft.client import AsyncWeft, Weft
    from weft.errors import (
        DamagedDownload,
        ExportFailed,
        FileChanged,
        ImportFailed,
        JobCancelled,
        JobEnded,
        JobFailed,
        WaitTimeout,
    )

__all__ = [
    "AsyncWeft",
    "DamagedDownload",
    "ExportFailed",
    "FileChanged",
    "ImportFailed",
    "JobCancelled",
    "JobEnded",
    "JobFailed",
    "WaitTimeout",
    "Weft",
]

if not TYPE_CHECKING:
    # The `openai` package takes half a second to import; the command line's help must not wait for it.
    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        home = "weft.client" if name in ("AsyncWeft", "Weft") else "weft.errors"
        value = globals()[name] = getattr(import_module(home), name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
