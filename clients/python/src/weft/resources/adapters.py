"""Registered adapters, for the synchronous client; `async_adapters` has the other one's.

An adapter is a name for a line of versions, and its aliases say which version is used: `model="support-bot@prod"`.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from openai import Omit, OpenAI, omit
from openai.pagination import SyncCursorPage
from typing_extensions import Unpack

from weft.errors import ImportFailed
from weft.options import Extras, path
from weft.resources.evaluations import Evaluations
from weft.resources.files import Files, quietly
from weft.resources.permissions import Permissions
from weft.resources.pushing import EXPIRY, PURPOSE, SavedAdapter
from weft.resources.references import Reference
from weft.resources.steering import Steering
from weft.resources.transfers import Exports, Format, Imports
from weft.resources.uploading import OnProgress
from weft.resources.versions import VERSION, Versions
from weft.stock import cached_property
from weft.types.adapters import (
    Adapter,
    AdapterDeleted,
    AdapterResidency,
    AdapterVersion,
    SourceParam,
)

ADAPTERS = "/adapters"
ADAPTER = ADAPTERS + "/{}"


class Adapters(Steering):
    """Where a method takes a `reference`, it is `name@v3`, `name@alias`, or `name` for the alias `default`."""

    def __init__(self, client: OpenAI) -> None:
        super().__init__(client)
        self._files = Files(client)

    @cached_property
    def versions(self) -> Versions:
        return Versions(self._client)

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

            >>> version = client.adapters.push("trained-elsewhere", "imported-bot", timeout=60)
            >>> version.model, version.source.type
            ('imported-bot@v1', 'import')
        """
        saved, sent = SavedAdapter.of(folder), dict[str, str]()
        begun = ended = None
        try:
            for file, tell in saved.parts(on_progress):
                uploaded = self._files.upload(file, PURPOSE, on_progress=tell, expires_after=EXPIRY)
                sent[file.name] = uploaded.id
            begun = self.imports.create(adapter=adapter, files=sent, base_model=base_model)
            ended = self.imports.wait(begun.id, timeout=timeout)
        except ImportFailed as refused:
            ended = refused.imported
            raise
        finally:
            # An import that goes on will still read them.
            if begun is None or ended is not None:
                self._forget(sent.values())
        assert ended is not None
        assert ended.version is not None
        return self.versions.retrieve(adapter, ended.version)

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

            >>> sorted(file.name for file in client.adapters.pull("support-bot@v1", "taken"))
            ['adapter_config.json', 'adapter_model.safetensors']
        """
        known = Reference.of(reference)
        begun = self.exports.create(known.adapter, self._version(known), format=format)
        done = self.exports.wait(begun.id, timeout=timeout)
        return self.exports.download(done, folder, on_progress=on_progress)

    def _forget(self, file_ids: Iterable[str]) -> None:
        for file_id in file_ids:
            quietly(lambda file_id=file_id: self._files.delete(file_id))
