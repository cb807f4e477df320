"""A pass-through on aiohttp that does nothing else: no keys, no limits, no metering, no other model name.

`python -m tests.benchmarks.gateway.naked PORT UPSTREAM_URL`
"""

import sys

import aiohttp
import uvloop
from aiohttp import web


async def _made(upstream: str) -> web.Application:
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    )

    async def passed(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {"content-type": request.content_type}
        async with session.post(upstream + request.path, data=body, headers=headers) as reply:
            if reply.content_type != "text/event-stream":
                return web.Response(status=reply.status, body=await reply.read(), content_type=reply.content_type)
            answer = web.StreamResponse(status=reply.status, headers={"content-type": reply.headers["content-type"]})
            await answer.prepare(request)
            async for data in reply.content.iter_any():
                await answer.write(data)
            await answer.write_eof()
            return answer

    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/{path:.*}", passed)
    return app


if __name__ == "__main__":
    uvloop.install()
    web.run_app(_made(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
