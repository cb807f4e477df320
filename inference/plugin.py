"""Weft's routes inside vLLM's API server (entry point group `vllm.endpoint_plugins`) and what admission needs of it.

    POST /v1/weft/adapters/ensure   load an adapter without a request
    POST /v1/weft/adapters/evict    take one out of vLLM and off the disk
    POST /v1/weft/spent             what requests have cost whose clients did not stay
    GET  /v1/weft/status            what is resident and what is in flight

All lie under /v1, which vLLM's own key check guards as well. What the routes do is the residency's.
"""

import asyncio
import contextlib
import logging
from argparse import Namespace
from collections.abc import Coroutine, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from inference.canary import SEEN
from inference.engine import registered
from inference.problems import AdapterError
from inference.runtime import Runtime
from inference.settings import ReplicaSettings
from service.contracts.replica import (
    SPENT_PATH,
    AdapterRef,
    AdapterResident,
    ReplicaStatus,
    RequestIds,
    Spent,
    Tokens,
)

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels

logger = logging.getLogger("weft.plugin")

RESTARTING = "The engine is restarting; try again shortly."
_LOOK_SECONDS = 0.5
"""Between looks at whether the engine still lives, while it is asked something."""

T = TypeVar("T")


class WeftPlugin:
    """vLLM makes one, attaches its routes, then hands it the engine."""

    name = "weft"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.add_api_route("/v1/weft/adapters/ensure", ensure, methods=["POST"])
        app.add_api_route("/v1/weft/adapters/evict", evict, methods=["POST"])
        app.add_api_route(SPENT_PATH, spent, methods=["POST"])
        app.add_api_route("/v1/weft/status", status, methods=["GET"])
        app.add_exception_handler(AdapterError, _render)

    async def init_state(self, engine_client: "EngineClient | None", state: Any, args: Namespace) -> None:
        if engine_client is None or not registered():
            raise RuntimeError("The replica needs an engine and the general plugin `weft`; is VLLM_PLUGINS=weft set?")
        from vllm.v1.metrics.prometheus import get_prometheus_registry

        settings = ReplicaSettings()  # type: ignore[call-arg]
        engine = VllmEngine(state.openai_serving_models, engine_client)
        state.weft = Runtime(settings, engine, get_prometheus_registry())
        await state.weft.start()


class VllmEngine:
    """The residency's view of vLLM: its registry of names and its engine's memory, always changed together."""

    def __init__(self, models: "OpenAIServingModels", client: Any) -> None:
        self._models = models
        self._client = client
        self._asked = count()

    async def load(self, adapter: str, folder: Path) -> None:
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest
        from vllm.v1.engine.exceptions import EngineDeadError

        if adapter in self._models.lora_requests:
            return
        request = LoadLoRAAdapterRequest(lora_name=adapter, lora_path=str(folder))
        try:
            answer = await self._while_it_lives(self._models.load_lora_adapter(request))
        except EngineDeadError as error:
            raise AdapterError("no_capacity", RESTARTING) from error
        if not isinstance(answer, ErrorResponse):
            return
        if self._client.errored:
            raise AdapterError("no_capacity", RESTARTING)
        logger.warning("vLLM refused adapter %s: %s", adapter, answer.error.message)
        reason = answer.error.message.replace(str(folder), adapter)[:500]
        raise AdapterError("adapter_invalid", f"This adapter cannot be served: {reason}")

    async def unload(self, adapter: str) -> None:
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest
        from vllm.v1.engine.exceptions import EngineDeadError

        known = self._models.lora_requests.get(adapter)
        if known is None:
            return
        await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=adapter))
        # vLLM keeps one lock per name for ever.
        self._models.lora_resolver_lock.pop(adapter, None)
        with contextlib.suppress(EngineDeadError):  # it holds nothing any more
            await self._while_it_lives(self._client.remove_lora(known.lora_int_id))

    async def predict(self, adapter: str | None, prompt: Sequence[int]) -> Mapping[int, float]:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError

        most: int = self._client.model_config.max_logprobs
        params = SamplingParams(
            temperature=0.0, max_tokens=1, logprobs=SEEN if most < 0 else min(SEEN, most), detokenize=False
        )
        answers = self._client.generate(
            TokensPrompt(prompt_token_ids=[*prompt]),
            params,
            f"weft-canary-{next(self._asked)}",
            lora_request=None if adapter is None else self._models.lora_requests[adapter],
        )
        try:
            last = [answer async for answer in answers][-1]
        except (ValueError, VLLMClientError) as error:
            logger.warning("vLLM refused the canary of %s: %s", adapter or "the base", error)
            return {}
        except EngineDeadError as error:
            raise AdapterError("no_capacity", RESTARTING) from error
        return {token: found.logprob for token, found in last.outputs[0].logprobs[0].items()}

    async def _while_it_lives(self, asked: Coroutine[Any, Any, T]) -> T:
        """vLLM never ends what it has asked an engine that died meanwhile, and its server would wait for that for ever.

        Raises EngineDeadError.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        task = asyncio.ensure_future(asked)
        try:
            while not task.done():
                if self._client.errored:
                    raise EngineDeadError
                await asyncio.wait({task}, timeout=_LOOK_SECONDS)
            return task.result()
        finally:
            task.cancel()


async def ensure(ref: AdapterRef, request: Request) -> AdapterResident:
    runtime: Runtime = request.app.state.weft
    return AdapterResident(adapter_id=ref.adapter_id, tier=await runtime.residency.ensure(ref.adapter_id))


async def evict(ref: AdapterRef, request: Request) -> AdapterResident:
    runtime: Runtime = request.app.state.weft
    await runtime.residency.evict(ref.adapter_id, seconds=runtime.evict_seconds)
    return AdapterResident(adapter_id=ref.adapter_id, tier=runtime.residency.tier(ref.adapter_id))


async def spent(asked: RequestIds, request: Request) -> Spent:
    runtime: Runtime = request.app.state.weft
    known = runtime.recent.of(asked.ids)
    return Spent(tokens={name: Tokens(prompt=cost.prompt, completion=cost.completion) for name, cost in known.items()})


async def status(request: Request) -> ReplicaStatus:
    runtime: Runtime = request.app.state.weft
    return runtime.status()


async def _render(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AdapterError)
    return JSONResponse(error.body(), error.status, error.headers)
