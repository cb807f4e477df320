"""Registered adapters, for the synchronous client; `async_adapters` has the other one's.

An adapter is a name for a line of versions, and its aliases say which version is used: `model="support-bot@prod"`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from openai import Omit, OpenAI, omit
from openai.pagination import SyncCursorPage
from typing_extensions import Unpack

from weft.options import Extras, path
from weft.resource import SyncResource
from weft.resources.aliases import Aliases
from weft.resources.evaluations import Evaluations
from weft.resources.files import Files
from weft.resources.permissions import Permissions
from weft.resources.references import Reference
from weft.resources.transfers import Exports, Format, Imports
from weft.resources.uploading import OnProgress
from weft.resources.versions import VERSION, Versions
from weft.stock import cached_property, raw
from weft.types.adapters import (
    Adapter,
    AdapterAlias,
    AdapterChange,
    AdapterDeleted,
    AdapterResidency,
    AdapterVersion,
    SourceParam,
)

ADAPTERS = "/adapters"
ADAPTER = ADAPTERS + "/{}"
PUSHED = ("adapter_config.json", "adapter_model.safetensors")


class Adapters(SyncResource):
    """Where a method takes a `reference`, it is `name@v3`, `name@alias`, or `name` for the alias `default`."""

    def __init__(self, client: OpenAI) -> None:
        super().__init__(client)
        self._files = Files(client)

    @cached_property
    def versions(self) -> Versions:
        return Versions(self._client)

    @cached_property
    def aliases(self) -> Aliases:
        return Aliases(self._client)

    @cached_property
    def permissions(self) -> Permissions:
        return Permissions(self._client)

    @cached_property
    def imports(self) -> Imports:
        return Imports(self._client)

    @cached_property
    def exports(self) -> Exports:
        return Exports(self._client)

    @cached_property
    def evaluations(self) -> Evaluations:
        return Evaluations(self._client)

    @cached_property
    def with_raw_response(self) -> "AdaptersWithRawResponse":
        return AdaptersWithRawResponse(self)

    def create(
        self,
        *,
        name: str,
        description: str | Omit = omit,
        metadata: Mapping[str, str] | Omit = omit,
        source: SourceParam | Omit = omit,
        **extras: Unpack[Extras],
    ) -> Adapter:
        """Registers a name. With `source` it has its first version at once, which becomes its alias `default`.

        >>> adapter = client.adapters.create(name="faq-bot", source={"type": "job", "job_id": job_id})
        >>> adapter.latest_version, adapter.aliases
        (1, {'default': 1})
        """
        body = {"name": name, "description": description, "metadata": metadata, "from": source}
        return self._do("post", ADAPTERS, Adapter, extras, body)

    def list(
        self,
        *,
        include_deleted: bool | Omit = omit,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        order: Literal["asc", "desc"] | Omit = omit,
        **extras: Unpack[Extras],
    ) -> SyncCursorPage[Adapter]:
        """The project's adapters, newest first.

        >>> "support-bot" in [adapter.name for adapter in client.adapters.list()]
        True
        """
        query = {"include_deleted": include_deleted, "after": after, "limit": limit, "order": order}
        return self._pages(ADAPTERS, Adapter, extras, query)

    def retrieve(self, adapter: str, **extras: Unpack[Extras]) -> Adapter:
        return self._one(path(ADAPTER, adapter), Adapter, extras)

    def update(
        self,
        adapter: str,
        *,
        description: str | Omit | None = omit,
        metadata: Mapping[str, str] | Omit | None = omit,
        **extras: Unpack[Extras],
    ) -> Adapter:
        """Changes what is given; None empties it.

        >>> client.adapters.update("support-bot", metadata={"team": "help"}).metadata
        {'team': 'help'}
        """
        body = {"description": description, "metadata": metadata}
        return self._do("patch", path(ADAPTER, adapter), Adapter, extras, body)

    def delete(self, adapter: str, **extras: Unpack[Extras]) -> AdapterDeleted:
        """Takes an adapter away with its versions and aliases; until `purged_at` it can be restored.

        >>> client.adapters.delete("support-bot").deleted
        True
        >>> client.adapters.restore("support-bot").deleted_at is None
        True
        """
        return self._do("delete", path(ADAPTER, adapter), AdapterDeleted, extras)

    def restore(self, adapter: str, **extras: Unpack[Extras]) -> Adapter:
        """Brings a deleted adapter back as it was."""
        return self._do("post", path(ADAPTER + "/restore", adapter), Adapter, extras)

    def promote(
        self,
        reference: str,
        alias: str,
        *,
        if_revision: int | Omit = omit,
        reason: str | Omit = omit,
        **extras: Unpack[Extras],
    ) -> AdapterAlias:
        """Points `alias` at the version that `reference` means, with all of its traffic.

        >>> client.adapters.promote("support-bot@v1", "prod", reason="first release").version
        1
        """
        known = Reference.of(reference)
        version = self._version(known)
        return self.aliases.set(known.adapter, alias, version=version, if_revision=if_revision, reason=reason, **extras)

    def rollback(
        self, adapter: str, alias: str = "default", *, reason: str | Omit = omit, **extras: Unpack[Extras]
    ) -> AdapterAlias:
        """Points an alias back at the version that had all its traffic before, and ends splits and shadows."""
        body = {"alias": alias, "reason": reason}
        return self._do("post", path(ADAPTER + "/rollback", adapter), AdapterAlias, extras, body)

    def history(
        self,
        adapter: str,
        *,
        alias: str | Omit = omit,
        after: str | Omit = omit,
        limit: int | Omit = omit,
        order: Literal["asc", "desc"] | Omit = omit,
        **extras: Unpack[Extras],
    ) -> SyncCursorPage[AdapterChange]:
        """Every change of the adapter's aliases, newest first: who, when, why, from which version to which.

        >>> [(change.alias, change.to_version) for change in client.adapters.history("support-bot")]
        [('default', 1)]
        """
        query = {"alias": alias, "after": after, "limit": limit, "order": order}
        return self._pages(path(ADAPTER + "/history", adapter), AdapterChange, extras, query)

    def residency(self, adapter: str, **extras: Unpack[Extras]) -> SyncCursorPage[AdapterResidency]:
        """Which replicas hold which of the newest versions, and in which tier of memory.

        >>> [(version.model, version.replicas) for version in client.adapters.residency("support-bot")]
        [('support-bot@v1', [])]
        """
        return self._pages(path(ADAPTER + "/residency", adapter), AdapterResidency, extras)

    def warm(self, reference: str, **extras: Unpack[Extras]) -> AdapterVersion:
        """Asks for a version to be loaded where its next request will go. A hint that nothing waits for."""
        known = Reference.of(reference)
        where = path(VERSION + "/warm", known.adapter, self._version(known))
        return self._do("post", where, AdapterVersion, extras)

    def pin(self, reference: str, **extras: Unpack[Extras]) -> AdapterVersion:
        """Asks for a version to be kept loaded whether it is used or not.

        >>> client.adapters.pin("support-bot@v1").pinned, client.adapters.unpin("support-bot@v1").pinned
        (True, False)
        """
        known = Reference.of(reference)
        where = path(VERSION + "/pin", known.adapter, self._version(known))
        return self._do("post", where, AdapterVersion, extras)

    def unpin(self, reference: str, **extras: Unpack[Extras]) -> AdapterVersion:
        known = Reference.of(reference)
        where = path(VERSION + "/pin", known.adapter, self._version(known))
        return self._do("delete", where, AdapterVersion, extras)

    def push(
        self,
        folder: str | os.PathLike[str],
        adapter: str,
        *,
        base_model: str | Omit = omit,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> AdapterVersion:
        """Makes a folder that PEFT has saved the next version of an adapter, which is made where it does not exist.

        Raises ImportFailed with the reason where the service cannot serve it, WaitTimeout after `timeout` seconds.
        """
        files = {
            name: self._files.upload(Path(folder) / name, "user_data", on_progress=on_progress).id for name in PUSHED
        }
        begun = self.imports.create(adapter=adapter, files=files, base_model=base_model)
        done = self.imports.wait(begun.id, timeout=timeout)
        assert done.version is not None
        return self.versions.retrieve(adapter, done.version)

    def pull(
        self,
        reference: str,
        folder: str | os.PathLike[str],
        *,
        format: Format = "peft",
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> tuple[Path, ...]:
        """The files of a version in a new folder: `peft` as PEFT loads them, or `merged` into the base's weights.

        The folder is there with everything in it, each file checked by its SHA-256, or after an error not at all.
        """
        known = Reference.of(reference)
        begun = self.exports.create(known.adapter, self._version(known), format=format)
        done = self.exports.wait(begun.id, timeout=timeout)
        return self.exports.download(done, folder, on_progress=on_progress)

    def _version(self, known: Reference) -> int:
        if known.version is not None:
            return known.version
        return self.aliases.retrieve(known.adapter, known.alias or "").version


class AdaptersWithRawResponse:
    def __init__(self, adapters: Adapters) -> None:
        self.create = raw(adapters.create)
        self.list = raw(adapters.list)
        self.retrieve = raw(adapters.retrieve)
        self.update = raw(adapters.update)
        self.delete = raw(adapters.delete)
        self.restore = raw(adapters.restore)
        self.rollback = raw(adapters.rollback)
        self.history = raw(adapters.history)
        self.residency = raw(adapters.residency)
