"""`/openapi.json`, and `/docs` to read it in a browser. Everything the page loads comes from this service."""

import json
from collections.abc import Sequence
from pathlib import Path

import fastapi_offline
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from service.openapi.document import document

ASSETS = Path(fastapi_offline.__file__).parent / "static"
SERVED = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")


def pages(described: Sequence[BaseRoute]) -> list[BaseRoute]:
    """The routes that show the document of `described`."""
    made = json.dumps(document(described)).encode()

    async def schema(_: Request) -> Response:
        return Response(made, media_type="application/json")

    return [Route("/openapi.json", schema), Route("/docs", docs), *(_asset(name) for name in SERVED)]


async def docs(_: Request) -> HTMLResponse:
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Weft",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="/docs/favicon.png",
        # The validator is somebody else's server.
        swagger_ui_parameters={"validatorUrl": None, "docExpansion": "none"},
    )


def _asset(name: str) -> Route:
    async def asset(_: Request) -> FileResponse:
        return FileResponse(ASSETS / name)

    return Route(f"/docs/{name}", asset)
