"""What Weft changes inside vLLM's own processes (entry point group `vllm.general_plugins`, loaded first of all).

Nine small changes, each tested against the pinned version: freed KV blocks are zeroed before reuse, so that one
tenant's overflow can never reach another's answer; on CPUs adapters take a fraction of the time, and none touches the
base's own requests (`cpu_lora`); no adapter has a part in embeddings and head; who computes logits that are not numbers
is told to the runtime; the LoRA gauge, wrong and of unbounded size, is not kept; on CPUs the engine is forked, not
spawned, which saves the second import of torch and its memory; no process of the tree outlives its parent; the log
quotes no request (`discretion`); what each request costs and when the engine is done with it is told (`work`).
Everything else of vLLM stays as shipped.
"""

import ctypes
import functools
import os
import signal
from collections.abc import Callable
from typing import Any

from inference import discretion, work

_PR_SET_PDEATHSIG = 1
_listeners: list[Callable[[str | None], None]] = []


def register() -> None:
    """vLLM calls this in each of its processes, possibly more than once."""
    die_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)
    _zero_kv_blocks()
    _multiply_by_adapter_on_cpu()
    _keep_the_vocabulary_bare()
    _report_corruption()
    _drop_lora_gauge()
    _fork_engine_on_cpu()
    discretion.install()
    work.install()


def registered() -> bool:
    """Whether `register` took effect in this process; vLLM only logs a plugin that fails to load."""
    from vllm.v1.kv_cache_interface import KVCacheConfig

    return isinstance(vars(KVCacheConfig)["needs_kv_cache_zeroing"], _Always)


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the thread that started it ends; Linux only, harmless elsewhere."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _zero_kv_blocks() -> None:
    """Masked attention computes 0 x NaN: a freed block that holds NaN would poison whoever gets it next."""
    from vllm.v1.kv_cache_interface import KVCacheConfig

    KVCacheConfig.needs_kv_cache_zeroing = _Always(lambda config: True)  # type: ignore[assignment]


class _Always(property):
    """Marks the property as ours."""


def _multiply_by_adapter_on_cpu() -> None:
    # Needs torch, which the launcher does without.
    from inference import cpu_lora

    cpu_lora.install()


def _keep_the_vocabulary_bare() -> None:
    """The gate lets no adapter in that changes embeddings or head, so vLLM need not make either ready for one.

    That costs memory for each slot and time for each token. And on CPUs a head made ready takes one row for each
    request, where log-probabilities of a prompt have one for each token: two requests at once that ask for them, of
    any tenant, would end the engine.
    """
    from vllm.lora import model_manager
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    supported = model_manager.is_supported_lora_module  # pyright: ignore[reportPrivateImportUsage]
    if getattr(supported, "bare", False):
        return

    @functools.wraps(supported)
    def is_supported(name: str, module: Any, modules: list[str]) -> bool:
        return not isinstance(module, VocabParallelEmbedding) and supported(name, module, modules)

    is_supported.bare = True  # type: ignore[attr-defined]
    setattr(model_manager, "is_supported_lora_module", is_supported)  # noqa: B010 what the module imports is none of its names


def on_corruption(listener: Callable[[str | None], None] | None) -> None:
    """Calls `listener` once for each request whose logits are not numbers, with its adapter, or None for the base."""
    _listeners[:] = [] if listener is None else [listener]


def _report_corruption() -> None:
    """vLLM only counts such requests; its statistics, kept where the requests arrive, know whose each one is."""
    from vllm.v1.metrics.stats import IterationStats

    update = IterationStats.update_from_output
    if getattr(update, "reports", False):
        return

    @functools.wraps(update)
    def update_from_output(
        stats: Any, output: Any, timestamp: float, is_prefilling: bool, request: Any, loras: Any, lora_name: str | None
    ) -> None:
        known = request.is_corrupted
        update(stats, output, timestamp, is_prefilling, request, loras, lora_name)
        if request.is_corrupted and not known:
            for listener in _listeners:
                listener(lora_name)

    update_from_output.reports = True  # type: ignore[attr-defined]
    IterationStats.update_from_output = update_from_output  # type: ignore[method-assign]


def _drop_lora_gauge() -> None:
    """Each new set of adapters in flight would stay as one more series for ever."""
    from prometheus_client import REGISTRY
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    made = PrometheusStatLogger.__init__
    if getattr(made, "drops", False):
        return

    @functools.wraps(made)
    def init(logger: Any, *args: Any, **options: Any) -> None:
        made(logger, *args, **options)
        gauge, logger.gauge_lora_info = logger.gauge_lora_info, None
        if gauge is not None:
            REGISTRY.unregister(gauge)

    init.drops = True  # type: ignore[attr-defined]
    PrometheusStatLogger.__init__ = init  # type: ignore[method-assign]


def _fork_engine_on_cpu() -> None:
    """vLLM spawns on CPUs only to give each worker its own OpenMP environment; an in-process worker needs none."""
    from vllm.platforms.cpu import CpuPlatform

    checked = CpuPlatform.check_and_update_config.__func__
    if getattr(checked, "forks", False):
        return

    def check_and_update_config(platform: type[CpuPlatform], config: Any) -> None:
        checked(platform, config)
        if config.parallel_config.distributed_executor_backend == "uni":
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # noqa: TID251 - the switch that vLLM itself sets here

    check_and_update_config.forks = True  # type: ignore[attr-defined]
    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)  # type: ignore[assignment]
