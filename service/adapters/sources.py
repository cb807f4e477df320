"""What a replica gets to read one adapter: its manifest and presigned URLs for a few minutes, no credential."""

from service.adapters import registry
from service.contracts.ids import AdapterId, is_adapter_id
from service.contracts.layout import adapter_prefix
from service.contracts.replica import AdapterSource
from service.errors import NotFound
from service.resources import Resources


async def source_of(resources: Resources, adapter_id: str) -> AdapterSource:
    """Raises NotFound where the adapter is unknown or deleted."""
    missing = NotFound(f"No adapter {adapter_id}.", code="adapter_not_found")
    if not is_adapter_id(adapter_id):
        raise missing
    async with resources.database.control() as session:
        found = await registry.find_adapter(session, AdapterId(adapter_id))
    if found is None:
        raise missing
    project, manifest = found
    prefix = adapter_prefix(project, AdapterId(adapter_id))
    seconds = resources.settings.presign_seconds
    urls = {file.path: resources.store.presign_get(prefix + file.path, seconds) for file in manifest.files}
    return AdapterSource(adapter_id=adapter_id, manifest=manifest, urls=urls)
