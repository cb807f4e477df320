"""Files: the `openai` package's resource, with uploads of any size and the service's reports on lines."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Literal

import anyio
import anyio.to_thread
from openai import APIError, Omit, omit
from openai.resources.files import AsyncFiles as OpenAIAsyncFiles
from openai.resources.files import Files as OpenAIFiles
from openai.types import FileObject, FilePurpose, file_create_params
from typing_extensions import Unpack

from weft.options import Extras, options_of, path
from weft.resources.uploading import (
    PARALLEL,
    PART_ATTEMPTS,
    PLAIN_BYTES,
    Meter,
    MeteredFile,
    OnProgress,
    Part,
    Source,
    delay,
    worth_retrying,
)
from weft.responses import AsyncRawFiles, AsyncStreamedFiles, RawFiles, StreamedFiles
from weft.stock import cached_property
from weft.types.files import FileValidation

ExpiresAfter = file_create_params.ExpiresAfter
UploadPurpose = Literal["fine-tune", "batch", "user_data", "assistants", "vision", "evals"]
MIME_TYPES = {".jsonl": "text/jsonl", ".json": "application/json"}


class Files(OpenAIFiles):
    """As `openai`'s, and `upload` and `validation`."""

    @cached_property
    def with_raw_response(self) -> RawFiles:
        return RawFiles(self)

    @cached_property
    def with_streaming_response(self) -> StreamedFiles:
        return StreamedFiles(self)

    def upload(
        self,
        file: str | os.PathLike[str],
        purpose: UploadPurpose,
        *,
        on_progress: OnProgress | None = None,
        expires_after: ExpiresAfter | Omit = omit,
        part_bytes: int | None = None,
        parallel: int = PARALLEL,
    ) -> FileObject:
        """Uploads a local file of any size: at once, or where it is large in parts, and checks that it arrived whole.

        With `part_bytes` it always goes in parts of that size. Raises FileChanged where the file changes meanwhile.

            >>> show = lambda progress: print(progress.done, "of", progress.total)
            >>> file = client.files.upload("train.jsonl", "fine-tune", on_progress=show)
            1452 of 1452
            >>> file.filename, file.status
            ('train.jsonl', 'processed')
        """
        source = Source.of(file)
        meter = Meter(source.size, on_progress)
        if part_bytes is None and source.size <= PLAIN_BYTES:
            with MeteredFile(source.path, meter) as content:
                return self.create(
                    file=(source.path.name, content), purpose=_purpose(purpose), expires_after=expires_after
                )
        return self._in_parts(source, purpose, meter, expires_after, source.parts(part_bytes), parallel)

    def validation(self, file_id: str, *, compare: str | Omit = omit, **extras: Unpack[Extras]) -> FileValidation:
        """The report on a file's lines: problems with their fixes, lengths, repeats, overlap with file `compare`.

        >>> report = client.files.validation(file_id, compare=file_id)
        >>> report.ok, report.format, report.valid, report.overlap.examples
        (True, 'chat', 12, 12)
        """
        options = options_of(extras, {"compare": compare})
        return self._get(path("/files/{}/validation", file_id), cast_to=FileValidation, options=options)

    def _in_parts(
        self,
        source: Source,
        purpose: UploadPurpose,
        meter: Meter,
        expires_after: ExpiresAfter | Omit,
        parts: list[Part],
        parallel: int,
    ) -> FileObject:
        uploads = self._client.uploads
        upload = uploads.create(
            bytes=source.size,
            filename=source.path.name,
            mime_type=mime_type(source),
            purpose=_purpose(purpose),
            expires_after=expires_after,
        )
        try:
            with ThreadPoolExecutor(min(parallel, len(parts)), "weft-upload") as pool:
                failed = threading.Event()
                sent = [pool.submit(self._unless, failed, upload.id, source, part, meter) for part in parts]
                try:
                    md5 = source.md5()
                    ids = [future.result() for future in sent]
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            done = uploads.complete(upload.id, part_ids=ids, md5=md5)
        except BaseException:
            quietly(lambda: uploads.cancel(upload.id))
            raise
        assert done.file is not None
        return done.file

    def _unless(self, failed: threading.Event, upload_id: str, source: Source, part: Part, meter: Meter) -> str:
        """Parts begin in order, so that whoever waits for them in order meets the real failure first."""
        if failed.is_set():
            raise CancelledError
        try:
            return self._send(upload_id, source, part, meter)
        except BaseException:
            failed.set()
            raise

    def _send(self, upload_id: str, source: Source, part: Part, meter: Meter) -> str:
        content = source.read(part)
        for attempt in range(PART_ATTEMPTS):
            try:
                sent = self._client.uploads.parts.create(upload_id, data=("part", content))
            except APIError as error:
                if attempt + 1 == PART_ATTEMPTS or not worth_retrying(error):
                    raise
                time.sleep(delay(attempt))
            else:
                meter.add(part.size)
                return sent.id
        raise AssertionError("unreachable")


class AsyncFiles(OpenAIAsyncFiles):
    """As Files; every method is awaited."""

    @cached_property
    def with_raw_response(self) -> AsyncRawFiles:
        return AsyncRawFiles(self)

    @cached_property
    def with_streaming_response(self) -> AsyncStreamedFiles:
        return AsyncStreamedFiles(self)

    async def upload(
        self,
        file: str | os.PathLike[str],
        purpose: UploadPurpose,
        *,
        on_progress: OnProgress | None = None,
        expires_after: ExpiresAfter | Omit = omit,
        part_bytes: int | None = None,
        parallel: int = PARALLEL,
    ) -> FileObject:
        source = Source.of(file)
        meter = Meter(source.size, on_progress)
        if part_bytes is None and source.size <= PLAIN_BYTES:
            with MeteredFile(source.path, meter) as content:
                return await self.create(
                    file=(source.path.name, content), purpose=_purpose(purpose), expires_after=expires_after
                )
        return await self._in_parts(source, purpose, meter, expires_after, source.parts(part_bytes), parallel)

    async def validation(self, file_id: str, *, compare: str | Omit = omit, **extras: Unpack[Extras]) -> FileValidation:
        options = options_of(extras, {"compare": compare})
        return await self._get(path("/files/{}/validation", file_id), cast_to=FileValidation, options=options)

    async def _in_parts(
        self,
        source: Source,
        purpose: UploadPurpose,
        meter: Meter,
        expires_after: ExpiresAfter | Omit,
        parts: list[Part],
        parallel: int,
    ) -> FileObject:
        uploads = self._client.uploads
        upload = await uploads.create(
            bytes=source.size,
            filename=source.path.name,
            mime_type=mime_type(source),
            purpose=_purpose(purpose),
            expires_after=expires_after,
        )
        try:
            ids = await self._send_all(upload.id, source, parts, meter, parallel)
            md5 = await anyio.to_thread.run_sync(source.md5)
            done = await uploads.complete(upload.id, part_ids=ids, md5=md5)
        except BaseException:
            with anyio.move_on_after(5, shield=True):
                await self._cancel(upload.id)
            raise
        assert done.file is not None
        return done.file

    async def _send_all(
        self, upload_id: str, source: Source, parts: list[Part], meter: Meter, parallel: int
    ) -> list[str]:
        """The parts' ids in order. The first part that fails for good ends the others, and its error is raised."""
        ids, failed = [""] * len(parts), list[Exception]()
        turns = anyio.Semaphore(parallel)

        async def send(number: int, part: Part) -> None:
            async with turns:
                try:
                    ids[number] = await self._send(upload_id, source, part, meter)
                except Exception as error:
                    failed.append(error)
                    group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for number, part in enumerate(parts):
                group.start_soon(send, number, part)
        if failed:
            raise failed[0]
        return ids

    async def _send(self, upload_id: str, source: Source, part: Part, meter: Meter) -> str:
        content = await anyio.to_thread.run_sync(source.read, part)
        for attempt in range(PART_ATTEMPTS):
            try:
                sent = await self._client.uploads.parts.create(upload_id, data=("part", content))
            except APIError as error:
                if attempt + 1 == PART_ATTEMPTS or not worth_retrying(error):
                    raise
                await anyio.sleep(delay(attempt))
            else:
                meter.add(part.size)
                return sent.id
        raise AssertionError("unreachable")

    async def _cancel(self, upload_id: str) -> None:
        try:
            await self._client.uploads.cancel(upload_id)
        except APIError:
            # It ends by itself within the hour; the caller is told why it failed.
            return


def mime_type(source: Source) -> str:
    return MIME_TYPES.get(source.path.suffix.lower(), "application/octet-stream")


def _purpose(purpose: UploadPurpose) -> FilePurpose:
    return purpose


def quietly(act: Callable[[], object]) -> None:
    """For what the service does by itself later; the caller is told why the whole failed, not of this."""
    try:
        act()
    except APIError:
        return
