"""The `openai` package's clients, pointed at a Weft service, with Weft's own resources.

>>> from weft import Weft
>>> client = Weft(base_url=base_url, api_key=api_key)
>>> file = client.files.upload("train.jsonl", purpose="fine-tune")
>>> job = client.fine_tuning.jobs.create_and_wait(model="weft-tiny", training_file=file.id)
>>> job.status
'succeeded'
"""

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
