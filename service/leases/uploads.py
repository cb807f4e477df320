"""What a worker may write to the store. Whether what it wrote is complete is for `service.adapters.stored`.

Checkpoints lie under the epoch and adapters under their content's hash, so a worker that lost its lease while holding
presigned URLs cannot touch what the next one writes.
"""

from service.adapters import registry
from service.adapters.stored import check_names
from service.contracts.ids import JobId, ProjectId
from service.contracts.job import JobSpec
from service.contracts.layout import adapter_prefix, checkpoint_prefix
from service.contracts.manifest import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MANIFEST,
    AdapterManifest,
    CheckpointManifest,
    adapter_id_of,
)
from service.contracts.worker import UploadRequest, UploadTargets
from service.errors import InvalidRequest
from service.leases.hold import held
from service.resources import Resources


async def targets(resources: Resources, job_id: str, request: UploadRequest) -> UploadTargets:
    """Presigned PUTs for the manifest's files and the manifest. Raises LeaseLost and InvalidRequest."""
    async with resources.database.control() as session:
        spec = JobSpec.model_validate((await held(session, job_id, request.epoch)).spec)
        if request.kind == "checkpoint" and request.checkpoint is not None:
            manifest: AdapterManifest | CheckpointManifest = request.checkpoint
            check_checkpoint(spec, request.epoch, request.checkpoint)
            prefix = checkpoint_folder(spec, request.checkpoint)
        elif request.kind == "adapter" and request.adapter is not None:
            manifest = request.adapter
            check_adapter(spec, request.adapter)
            await registry.reserve(session, _trained(spec, request.epoch, request.adapter))
            prefix = adapter_folder(spec, request.adapter)
        else:
            raise InvalidRequest(f"Uploads of kind '{request.kind}' need its manifest.", param=request.kind)
    seconds = resources.settings.presign_seconds
    names = [*(file.path for file in manifest.files), MANIFEST]
    return UploadTargets(urls={name: resources.store.presign_put(prefix + name, seconds) for name in names})


def _trained(spec: JobSpec, epoch: int, manifest: AdapterManifest) -> registry.Trained:
    return registry.Trained(ProjectId(spec.project_id), JobId(spec.job_id), epoch, manifest)


def checkpoint_folder(spec: JobSpec, manifest: CheckpointManifest) -> str:
    return checkpoint_prefix(ProjectId(spec.project_id), JobId(spec.job_id), manifest.epoch, manifest.step)


def adapter_folder(spec: JobSpec, manifest: AdapterManifest) -> str:
    return adapter_prefix(ProjectId(spec.project_id), adapter_id_of(manifest))


def check_checkpoint(spec: JobSpec, epoch: int, manifest: CheckpointManifest) -> None:
    """Raises InvalidRequest where the manifest is not one of this job under this epoch."""
    if manifest.job_id != spec.job_id or manifest.epoch != epoch:
        raise InvalidRequest("The checkpoint's manifest names another job or epoch.", param="manifest")
    check_names(manifest.files)


def check_adapter(spec: JobSpec, manifest: AdapterManifest) -> None:
    """Raises InvalidRequest where the manifest does not describe what the job was to produce."""
    expected: dict[str, object] = {
        "job_id": spec.job_id,
        "base_model": spec.base_model,
        "base_fingerprint": spec.base_fingerprint,
        "chat_template_sha256": spec.chat_template_sha256,
        "rank": spec.hyperparameters.lora_rank,
        "alpha": spec.hyperparameters.lora_alpha,
    }
    for name, value in expected.items():
        if getattr(manifest, name) != value:
            raise InvalidRequest(
                f"The adapter's manifest says {name} = {getattr(manifest, name)!r}, the job says {value!r}.",
                code="adapter_mismatch",
                param=name,
            )
    if {file.path for file in manifest.files} != {ADAPTER_CONFIG, ADAPTER_WEIGHTS}:
        raise InvalidRequest(f"An adapter is {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}.", param="files")
    check_names(manifest.files)
