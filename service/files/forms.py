"""Multipart forms with one file in them. What is above a megabyte lies in a temporary file, so memory does not grow;
how much may lie there at once is said by `spooling`.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import PureWindowsPath

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.contracts.ids import ProjectId
from service.errors import InvalidRequest, Unavailable, UnsupportedMedia
from service.files.spooling import Spooling

FILENAME_LENGTH = 255
PIECE_BYTES = 1 << 20
FORM_BYTES = 64 << 10
"""What a form may hold beside the file itself: its headers and the other fields."""


class _Parser(MultiPartParser):
    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            super().on_part_data(data, start, end)
        else:
            # Not copied: of hundreds of megabytes each copy is felt.
            self._file_parts_to_write.append((self._current_part, memoryview(data)[start:end]))  # pyright: ignore[reportArgumentType]


@asynccontextmanager
async def form_of(request: Request, project: ProjectId, wanted: str) -> AsyncGenerator[FormData]:
    """The form of a project's request, until the end of the block; `wanted` says which fields it should have.

    Raises RateLimited or Unavailable where there is no room for it.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise UnsupportedMedia(f"Send multipart/form-data with {wanted}.")
    spooling: Spooling = request.app.state.spooling
    with spooling.room(project, announced(request)):
        form = await _parsed(request)
        try:
            yield form
        finally:
            await form.close()


def announced(request: Request) -> int | None:
    """How long the body is, as its request says."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


async def _parsed(request: Request) -> FormData:
    try:
        async with aclosing(_coalesced(request)) as body:
            return await _Parser(request.headers, body, max_files=1, max_fields=8, max_part_size=4096).parse()
    except MultiPartException as error:
        raise InvalidRequest(f"The form cannot be read: {error.message}") from error
    except OSError as error:
        raise Unavailable("The server has no room for this upload just now.", code="storage_unavailable") from error


async def _coalesced(request: Request) -> AsyncGenerator[bytes]:
    """The body in larger pieces than the connection's: each one costs the parser a hop to a thread."""
    held: list[bytes] = []
    size = 0
    async with aclosing(request.stream()) as stream:
        async for piece in stream:
            held.append(piece)
            size += len(piece)
            if size >= PIECE_BYTES:
                yield b"".join(held)
                held, size = [], 0
    yield b"".join(held)


def file_in(form: FormData, field: str) -> tuple[UploadFile, int]:
    """The file of that field and its size. Raises InvalidRequest where there is none or nothing in it."""
    upload = form.get(field)
    if not isinstance(upload, UploadFile):
        raise InvalidRequest(f"Missing required parameter: '{field}', a form part with a filename.", param=field)
    if not upload.size:
        raise InvalidRequest("The file is empty.", param=field, code="empty_file")
    return upload, upload.size


def safe_name(given: str) -> str:
    """The last part of either kind of path, without what a terminal or a header would act on."""
    name = "".join(character for character in PureWindowsPath(given).name if character.isprintable())
    return name.strip()[:FILENAME_LENGTH] or "file"
