"""Identifiers: their types, their makers and their shapes. Knows nothing of what they name.

Every id is server-made from 128 or more random bits, so that no id can be guessed from another and a foreign id is
indistinguishable from an unknown one.
"""

import re
import secrets
import string
import unicodedata
from typing import NewType

OrganizationId = NewType("OrganizationId", str)
ProjectId = NewType("ProjectId", str)
KeyId = NewType("KeyId", str)
FileId = NewType("FileId", str)
UploadId = NewType("UploadId", str)
BatchId = NewType("BatchId", str)
JobId = NewType("JobId", str)
AdapterId = NewType("AdapterId", str)
"""Content hash of an adapter's manifest: 64 lowercase hex digits. Also the adapter's name inside vLLM."""

BASE62 = string.digits + string.ascii_letters
AT_ONCE = 128
ADAPTER_ID = re.compile(r"^[0-9a-f]{64}$")


def random_base62(length: int) -> str:
    """A string of `length` characters with 5.95 random bits each."""
    return "".join(secrets.choice(BASE62) for _ in range(length))


_hex: list[str] = []


def random_hex() -> str:
    """128 random bits. Asked of the system for many at once, since every request takes two."""
    if not _hex:
        drawn = secrets.token_hex(16 * AT_ONCE)
        _hex.extend(drawn[place : place + 32] for place in range(0, len(drawn), 32))
    return _hex.pop()


def new_organization_id() -> OrganizationId:
    return OrganizationId(f"org-{random_base62(24)}")


def new_project_id() -> ProjectId:
    return ProjectId(f"proj_{random_base62(24)}")


def new_key_id() -> KeyId:
    return KeyId(f"key_{random_base62(24)}")


def new_file_id() -> FileId:
    return FileId(f"file-{random_base62(24)}")


def new_upload_id() -> UploadId:
    return UploadId(f"upload_{random_base62(24)}")


def new_part_id() -> str:
    return f"part_{random_base62(24)}"


def new_batch_id() -> BatchId:
    return BatchId(f"batch_{random_base62(24)}")


def new_batch_request_id() -> str:
    return f"batch_req_{random_base62(24)}"


def new_job_id() -> JobId:
    return JobId(f"ftjob-{random_base62(24)}")


def new_event_id() -> str:
    return f"ftevent-{random_base62(24)}"


def new_checkpoint_id() -> str:
    return f"ftckpt_{random_base62(24)}"


def new_endpoint_id() -> str:
    return f"we_{random_base62(24)}"


def new_delivery_id() -> str:
    return f"whd_{random_base62(24)}"


def new_webhook_event_id() -> str:
    return f"evt_{random_base62(24)}"


def new_permission_id() -> str:
    return f"cp_{random_base62(24)}"


def new_import_id() -> str:
    return f"adimp-{random_base62(24)}"


def new_export_id() -> str:
    return f"adexp-{random_base62(24)}"


def new_registered_adapter_id() -> str:
    return f"adapter-{random_base62(24)}"


def new_version_id() -> str:
    return f"adpv-{random_base62(24)}"


def new_alias_change_id() -> str:
    return f"adpc-{random_base62(24)}"


def new_evaluation_id() -> str:
    return f"adev-{random_base62(24)}"


def new_adapter_grant_id() -> str:
    return f"adpg-{random_base62(24)}"


def new_service_account_id() -> str:
    return f"svc_acct_{random_base62(24)}"


def new_audit_id() -> str:
    return f"audit_log-{random_base62(24)}"


def new_request_id() -> str:
    return f"req_{random_hex()}"


def is_adapter_id(value: str) -> bool:
    return ADAPTER_ID.fullmatch(value) is not None


def fine_tuned_model_name(base: str, organization: str, suffix: str | None) -> str:
    """A public model name in OpenAI's shape, `ft:{base}:{organization}:{suffix}:{8 random characters}`.

    Of a suffix there is what a name can hold.
    """
    return f"ft:{base}:{organization}:{_slug(suffix or '')}:{random_base62(8)}"


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-")


def checkpoint_model_name(model: str, step: int) -> str:
    """The public name of a job's model at one of its steps, as OpenAI makes it of the final model's name."""
    return f"{model}:ckpt-step-{step}"
