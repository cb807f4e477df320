"""A caller is told only what is committed: the transaction of a request ends before its answer begins."""

import asyncio

import httpx2
from fastapi import FastAPI
from sqlalchemy import text

from service.app import create_app, lifespan
from service.resources import ControlTransaction
from service.settings import ServiceSettings
from service.tenants.projects import create_project


async def answer_of(app: FastAPI, path: str, seen: list[int | None]) -> httpx2.Response:
    """Calls `path` and notes, at the moment the answer begins, how many projects another transaction can see."""

    async def watched(scope: dict, receive: object, send: object) -> None:
        async def watching(message: dict) -> None:
            if message["type"] == "http.response.start":
                async with app.state.resources.database.control() as session:
                    seen.append(await session.scalar(text("select count(*) from projects")))
            await send(message)  # type: ignore[operator]

        await app(scope, receive, watching)  # type: ignore[arg-type]

    transport = httpx2.ASGITransport(app=watched)  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
        return await client.post(path)


async def test_the_commit_comes_before_the_answer(service_settings: ServiceSettings) -> None:
    app = create_app(service_settings)

    @app.post("/make")
    async def make(session: ControlTransaction) -> str:
        return (await create_project(session, service_settings.organization_name, "made")).id

    seen: list[int | None] = []
    async with lifespan(app):
        response = await answer_of(app, "/make", seen)
    assert response.status_code == 200
    assert seen == [1]


async def test_a_commit_that_fails_is_an_error_and_not_an_answer(service_settings: ServiceSettings) -> None:
    app = create_app(service_settings)

    @app.post("/cut")
    async def cut(session: ControlTransaction) -> str:
        backend = await session.scalar(text("select pg_backend_pid()"))
        async with app.state.resources.database.control() as other:
            await other.execute(text("select pg_terminate_backend(:backend)"), {"backend": backend})
        await asyncio.sleep(0.1)
        return "done"

    seen: list[int | None] = []
    async with lifespan(app):
        response = await answer_of(app, "/cut", seen)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
