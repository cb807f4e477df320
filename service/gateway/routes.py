"""The routes of inference: from a key and a model name to a replica's answer, metered.

Plain ASGI, inside the application's request framing and error rendering. Nothing here waits for the database while
keys, names and replicas are known.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from types import TracebackType

from starlette.types import ASGIApp, Receive, Scope, Send

from service.contracts.ids import ProjectId, new_request_id
from service.contracts.replica import WAIT_HEADER
from service.errors import ApiError, Unavailable
from service.gateway import fields
from service.gateway.abandoned import Abandoned
from service.gateway.client import Answer, connection_of, read_body
from service.gateway.embeddings import not_embedding, parse_embedding
from service.gateway.exchange import Answered, Booking, pass_on, whole_answer
from service.gateway.fitting import check_fits
from service.gateway.heat import Heat
from service.gateway.limits import Budgets, Held, Limits
from service.gateway.outcomes import Outcome, Outcomes
from service.gateway.place import Placement
from service.gateway.pool import Pool
from service.gateway.pulse import Pulse
from service.gateway.relay import Call, Relay, open_session
from service.gateway.request import CompletionRequest, check_type, parse
from service.gateway.resolve import Callers, Pseudonyms, Resolver, Target
from service.gateway.responses import parse_response
from service.gateway.shadows import Shadows
from service.gateway.warm import Warmer
from service.idempotency.once import RAW_KEY_HEADER, Once
from service.limits.limiter import Limiter, estimate
from service.limits.rates import Admission
from service.replicas.membership import Membership
from service.resources import Resources
from service.tenants import scopes
from service.tenants.auth import KeyCache, Tenant
from service.usage.spool import Spool

RESTART_SECONDS = 1.0
Parser = Callable[[bytes], CompletionRequest]
PARSERS: dict[str, Parser] = {
    "/v1/chat/completions": partial(parse, allowed=fields.CHAT),
    "/v1/completions": partial(parse, allowed=fields.COMPLETION),
    "/v1/responses": parse_response,
}
"""What reads a request's body, by the path that generates from it."""
EMBEDDINGS = "/v1/embeddings"
VERSION_HEADER = b"x-adapter-version"
"""Answer header: which version answered, where the registry was asked."""

log = logging.getLogger("service.gateway")


class Gateway:
    """One process's gateway. An async context: the routes answer inside it only."""

    def __init__(self, resources: Resources, keys: KeyCache) -> None:
        self.callers = Callers(keys)
        self._metrics = resources.metrics
        self.resolver = Resolver(resources)
        settings = resources.settings
        self.limits = Limits(
            Budgets(
                requests=settings.max_completions,
                of_project=settings.max_project_completions,
                bytes=settings.max_completion_bytes,
                bytes_of_project=settings.max_project_completion_bytes,
            )
        )
        self.bases = {base.name: base for base in settings.base_models}
        self._pseudonyms = Pseudonyms(resources)
        self.membership = Membership(resources)
        self._placement = Placement(self.membership, Heat(settings.hot_adapter_requests))
        self._warmer = Warmer(resources)
        self.spool = Spool(settings.spool_dir, resources.database)
        self.limiter = Limiter(settings, resources.database)
        self.outcomes = Outcomes(resources.database)
        self.once = Once(resources.database, settings.secret.get_secret_value())
        self.shadows = Shadows(
            partial(self.answer, shadow=True), self.spool, settings.max_shadow_requests, lambda: self.limits.crowded
        )
        self._cold_wait = settings.cold_wait_seconds
        self._stack = AsyncExitStack()
        resources.notifications.subscribe("model", self.resolver.forget)
        resources.notifications.subscribe("model", self._warmer.wake)
        resources.notifications.subscribe("replica", self.membership.wake)

    def endpoints(self) -> dict[str, ASGIApp]:
        """What answers a POST, by its path."""
        generating = {path: Endpoint(self, path, read) for path, read in PARSERS.items()}
        return {**generating, EMBEDDINGS: Embeddings(self)}

    async def __aenter__(self) -> "Gateway":
        session = await self._stack.enter_async_context(open_session())
        pulse = Pulse(session, self.membership)
        pool = await self._stack.enter_async_context(Pool())
        self._relay = Relay(pool, self._placement, self.membership, pulse, self._cold_wait)
        self.abandoned = Abandoned(session)
        await self._stack.enter_async_context(self.spool.running())
        self._stack.push_async_callback(self.abandoned.look)
        await self.membership.refresh()
        warming = partial(self._warmer.run, session, self._placement)
        self._stack.push_async_callback(self.outcomes.flush)
        own = (self.limiter.run, self.outcomes.run, self.abandoned.run)
        for work in (self.membership.run, pulse.run, pool.run, warming, *own):
            self._stack.push_async_callback(_ended, asyncio.create_task(_kept_running(work)))
        self._stack.push_async_callback(self.shadows.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def check_ready(self) -> None:
        """Raises where an answer could not be metered."""
        if not self.spool.accepting:
            raise Unavailable("Usage cannot be recorded just now; try again.", code="usage_unavailable", retry_after=5)

    async def exchange(
        self,
        path: str,
        tenant: Tenant,
        request: CompletionRequest,
        target: Target,
        answer: Answer,
        admission: Admission,
        held: Held,
    ) -> None:
        """Asks a replica and passes its answer on. The ledger's id is ours: a client's could be used twice."""
        pseudonym = self._pseudonyms.tenant(tenant.project_id)
        call = self._call(path, tenant.project_id, request, target, pseudonym, take=held.take)
        if target.shadow is None:
            request.forget()
        booking = Booking(self.spool, self._metrics, tenant, target, call.request_id, admission)
        left = partial(self.abandoned.note, request_id=call.request_id, book=booking.book)
        began = time.monotonic()
        try:
            async with self._relay.ask(call, left) as reply:
                seconds = time.monotonic() - began
                if target.shadow is not None:
                    self.shadows.offer(path, tenant.project_id, request, target.shadow)
                whole = await pass_on(reply, request, target, answer, booking)
        except ApiError as problem:
            self._failed(target, problem)
            raise
        # The first event of a stream that does not count tokens comes before the first token.
        timed = seconds if request.counts or not reply.is_stream else None
        outcome = Outcome(failed=not whole, usage=booking.usage, seconds=timed, stream=reply.is_stream)
        self.outcomes.note(target.version, outcome)

    async def answer(
        self, path: str, project: ProjectId, request: CompletionRequest, target: Target, *, shadow: bool = False
    ) -> Answered:
        """A replica's whole answer to what no client waits for. Not metered here. Raises ApiError."""
        call = self._call(path, project, request, target, self._pseudonyms.batches(project), once=shadow)
        began = time.monotonic()
        try:
            async with self._relay.ask(call) as reply:
                seconds = time.monotonic() - began
                body, usage = whole_answer(reply, target)
                waited = float(reply.wire.headers.get(WAIT_HEADER.encode(), 0)) / 1000
        except ApiError as problem:
            self._failed(target, problem, shadow=shadow)
            raise
        # How long a batch waits says nothing of the version.
        outcome = Outcome(failed=False, usage=usage, seconds=seconds if shadow else None)
        self.outcomes.note(target.version, outcome, shadow=shadow)
        self._metrics.tokens.add(project, usage.prompt_tokens, usage.completion_tokens)
        return Answered(call.request_id, body, usage, waited)

    def _failed(self, target: Target, problem: ApiError, *, shadow: bool = False) -> None:
        self._metrics.failed(problem.status, problem.code)
        self.outcomes.note_problem(target.version, problem, shadow=shadow)

    def _call(
        self,
        path: str,
        project: ProjectId,
        request: CompletionRequest,
        target: Target,
        tenant: str,
        *,
        once: bool = False,
        take: Callable[[int], None] | None = None,
    ) -> Call:
        return Call(
            once=once,
            take=take,
            path=path,
            body=request.upstream(target.model, self._pseudonyms.cache_salt(project)),
            target=target,
            affinity=target.model if target.is_adapter else project,
            tenant=tenant,
            request_id=new_request_id(),
            stream=request.stream,
        )


class Endpoint:
    """One path as an ASGI application."""

    def __init__(self, gateway: Gateway, path: str, read: Parser) -> None:
        self._gateway = gateway
        self._path = path
        self._read = read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway, headers = self._gateway, dict(scope["headers"])
        tenant = await caller(gateway, scope, headers, self._path)
        gateway.check_ready()
        # From before the body: that is what takes memory.
        with gateway.limits.counted(tenant.project_id, tenant.limits.streams) as held:
            raw = await read_body(receive, held.take)
            if RAW_KEY_HEADER in headers:
                work = partial(self._answer, tenant, held, raw, scope)
                await gateway.once.answer(scope, receive, send, tenant.project_id, raw, work)
            else:
                await self._answer(tenant, held, raw, scope, send)

    async def _answer(self, tenant: Tenant, held: Held, raw: bytes, scope: Scope, send: Send) -> None:
        request = self._read(raw)
        target = await self._gateway.resolver.target(tenant.project_id, request.model, raw)
        check_fits(request, self._gateway.bases.get(target.base))
        tokens = estimate(len(raw), request.fields, request.choices * request.prompts)
        with self._gateway.limiter.admit(tenant, tokens) as admission:
            headers = admission.headers
            if target.version is not None:
                headers = [*headers, (VERSION_HEADER, target.name.encode())]
            with Answer(connection_of(scope), send, headers) as answer:
                await self._gateway.exchange(self._path, tenant, request, target, answer, admission, held)


class Embeddings:
    """`/v1/embeddings` as an ASGI application."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        tenant = await caller(self._gateway, scope, headers, EMBEDDINGS)
        with self._gateway.limits.counted(tenant.project_id, tenant.limits.streams) as held:
            raw = await read_body(receive, held.take)
            work = partial(self._answer, tenant.project_id, raw)
            if RAW_KEY_HEADER in headers:
                await self._gateway.once.answer(scope, receive, send, tenant.project_id, raw, work)
            else:
                await work(send)

    async def _answer(self, project: ProjectId, raw: bytes, _send: Send) -> None:
        model = parse_embedding(raw)
        await self._gateway.resolver.target(project, model)
        raise not_embedding(model)


async def caller(gateway: Gateway, scope: Scope, headers: dict[bytes, bytes], path: str) -> Tenant:
    """Who asks, before the body is read. Raises Unauthenticated, RateLimited, Forbidden or UnsupportedMedia."""
    client = scope.get("client")
    address = client[0] if client else None
    tenant = await gateway.callers.tenant(headers.get(b"authorization", b"").decode("latin-1"), address)
    scopes.require(tenant.scopes, "POST", path)
    check_type(headers.get(b"content-type", b"").decode("latin-1"))
    return tenant


async def _kept_running(work: Callable[[], Awaitable[None]]) -> None:
    """One failure must not end a background task for the life of the process."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("a background task of the gateway failed; it starts again")
        await asyncio.sleep(RESTART_SECONDS)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
