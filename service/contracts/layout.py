"""Every object key, as a function. All objects of a tenant lie under one prefix, `t/<project>/`."""

from service.contracts.ids import AdapterId, BatchId, FileId, JobId, ProjectId, UploadId

TENANTS = "t/"


def project_prefix(project: ProjectId) -> str:
    return f"t/{project}/"


def file_key(project: ProjectId, file: FileId) -> str:
    return f"t/{project}/files/{file}"


def upload_prefix(project: ProjectId, upload: UploadId) -> str:
    """The parts of an upload, until they are one file."""
    return f"t/{project}/uploads/{upload}/"


def batch_prefix(project: ProjectId, batch: BatchId) -> str:
    """Parts of a batch's answers, until they are its files."""
    return f"t/{project}/batches/{batch}/"


def job_prefix(project: ProjectId, job: JobId) -> str:
    return f"t/{project}/jobs/{job}/"


def checkpoint_prefix(project: ProjectId, job: JobId, epoch: int, step: int) -> str:
    """The epoch is part of the key, so a trainer that lost its lease can never overwrite a live checkpoint."""
    return f"t/{project}/jobs/{job}/e{epoch}/step-{step}/"


def adapter_prefix(project: ProjectId, adapter: AdapterId) -> str:
    return f"t/{project}/adapters/{adapter}/"


def exports_prefix(project: ProjectId, export: str) -> str:
    """Everything that the epochs of a merged export wrote."""
    return f"t/{project}/exports/{export}/"


def export_prefix(project: ProjectId, export: str, epoch: int) -> str:
    """What one epoch wrote, out of the way of every other."""
    return f"{exports_prefix(project, export)}e{epoch}/"
