"""Requests and answers between uvicorn's protocol and an application, in fewer steps than uvicorn takes.

An answer of known length goes out whole, in one call of the kernel instead of two, and its head is checked as a whole.
What holds for the connection they come on is `connections`'.
"""

import asyncio
import re
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

UNSENDABLE = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
CHUNKED = b"transfer-encoding: chunked\r\n"
CLOSE = b"connection: close\r\n"
BODILESS = (204, 304)


class Cycle(RequestResponseCycle):
    """One request and its answer. `_held` is the head of an answer whose body has not begun."""

    _held = b""

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if self.response_complete or (message["type"] == "http.response.start") is self.response_started:
            raise RuntimeError(f"an application sent {message['type']} at the wrong time")
        if not self.response_started:
            self._start(message["status"], message.get("headers", ()))
        else:
            self._go_on(message.get("body", b""), last=not message.get("more_body", False))

    def _start(self, status: int, headers: Any) -> None:
        length: bytes | None = None
        lines = [STATUS_LINE[status]]
        for name, value in (*self.default_headers, *headers):
            name = name.lower()
            if name == b"content-length":
                length = value
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive = False
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        if not self.keep_alive:
            lines.append(CLOSE)
        self.expected_content_length = int(length or 0)
        self.chunked_encoding = length is None and self.scope["method"] != "HEAD" and status not in BODILESS
        if self.chunked_encoding:
            lines.append(CHUNKED)
        head = b"".join(lines)
        if head.count(b"\r") != len(lines) or head.count(b"\n") != len(lines) or UNSENDABLE.search(head):
            raise RuntimeError("a header of an answer holds what ends a header")
        self.response_started = True
        self.waiting_for_100_continue = False
        if self.chunked_encoding:
            self.transport.write(head + b"\r\n")
        else:
            self._held = head + b"\r\n"

    def _go_on(self, body: bytes, *, last: bool) -> None:
        if self.chunked_encoding:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if last:
                data += b"0\r\n\r\n"
        else:
            if self.scope["method"] == "HEAD":
                body, self.expected_content_length = b"", 0
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0 or (last and self.expected_content_length):
                raise RuntimeError("an answer is not as long as it was said to be")
            data, self._held = self._held + body if self._held else body, b""
        if data:
            self.transport.write(data)
        if last:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()


class CycleProtocol(HttpToolsProtocol):
    """uvicorn's, but for the cycles that it begins, and without what is not asked of it: mounting and a limit."""

    def on_headers_complete(self) -> None:
        parser = cast(httptools.HttpRequestParser, self.parser)
        version = parser.get_http_version()
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope = cast(dict[str, Any], self.scope)
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        app = cast(Any, self).app
        before = cast(RequestResponseCycle | None, self.cycle)
        self.cycle = Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, app)
        else:
            # What was sent ahead waits for the answers before it.
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, app))
