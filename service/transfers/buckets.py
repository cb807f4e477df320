"""Buckets beside the service's own from which adapters may be imported: which, and what lies there.

Only those in the settings, and never the service's own: its objects are other tenants' too.
"""

import asyncio
import re
from dataclasses import dataclass

from service.contracts.ids import ProjectId
from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from service.contracts.store import ObjectMissing, ObjectStore, StoreSettings
from service.errors import InvalidRequest
from service.resources import Resources

_SOURCE = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,62})/(?P<prefix>[A-Za-z0-9._=/-]{1,900})")
PROJECT = "{project}"

_stores: dict[tuple[str | None, str], ObjectStore] = {}
"""By endpoint and bucket. Making one takes longer than asking it; there are as many as the settings name."""


@dataclass(frozen=True)
class Located:
    """An adapter's two files in a bucket, by PEFT's names: their keys and sizes."""

    bucket: str
    keys: dict[str, str]
    sizes: dict[str, int]


async def locate(resources: Resources, project: ProjectId, source: str) -> Located:
    """Asks the bucket. Raises InvalidRequest for one that is not allowed or holds no adapter there."""
    bucket, prefix = _allowed(resources, project, source)
    store = store_of(resources.settings.store, bucket)
    keys = {name: f"{prefix}/{name}" for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    try:
        sizes = {name: await asyncio.to_thread(store.size, key) for name, key in keys.items()}
    except ObjectMissing as error:
        raise InvalidRequest(
            f"There is no {ADAPTER_CONFIG} or no {ADAPTER_WEIGHTS} at that place; give the folder that PEFT wrote.",
            code="source_missing",
            param="source",
        ) from error
    return Located(bucket, keys, sizes)


def store_of(settings: StoreSettings, bucket: str) -> ObjectStore:
    """With the service's own credentials, which must be allowed to read there."""
    known = _stores.get((settings.endpoint, bucket))
    if known is None:
        known = _stores[settings.endpoint, bucket] = ObjectStore(settings.model_copy(update={"bucket": bucket}))
    return known


def _allowed(resources: Resources, project: ProjectId, source: str) -> tuple[str, str]:
    named = _SOURCE.fullmatch(source)
    prefix = named["prefix"].strip("/") if named else ""
    plain = bool(prefix) and all(part not in ("", ".", "..") for part in prefix.split("/"))
    settings = resources.settings
    if named is None or not plain or named["bucket"] == settings.store.bucket:
        raise _refused()
    place = f"{named['bucket']}/{prefix}/"
    places = (allowed.strip("/").replace(PROJECT, project) + "/" for allowed in settings.import_places)
    if not any(place.startswith(allowed) for allowed in places):
        raise _refused()
    return named["bucket"], prefix


def _refused() -> InvalidRequest:
    return InvalidRequest(
        "'source' must be 's3://bucket/folder' in a place that the operator allows for imports; or upload the files "
        "with purpose 'user_data' and give 'files'.",
        code="source_not_allowed",
        param="source",
    )
