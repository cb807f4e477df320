"""What Weft changes inside vLLM's own processes (entry point group `vllm.general_plugins`, loaded first of all).

Three small changes, each tested against the pinned version: freed KV blocks are zeroed before reuse, so that one
tenant's overflow can never reach another's answer; on CPUs the engine is forked, not spawned, which saves the second
import of torch and its memory; no process of the tree outlives its parent. Everything else of vLLM stays as shipped.
"""

import ctypes
import os
import signal
from typing import Any

_PR_SET_PDEATHSIG = 1


def register() -> None:
    """vLLM calls this in each of its processes, possibly more than once."""
    die_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)
    _zero_kv_blocks()
    _fork_engine_on_cpu()


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
