"""The engine that Weft's plugin changes: one tenant's KV cache never reaches another; whose values are NaN is known."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.inference.adapters import lora, lora_tensors
from tests.inference.conftest import BYTECODE, write_base

PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from inference.engine import on_corruption

base, poison = sys.argv[1:]
engine = LLM(
    base, enable_lora=True, max_lora_rank=8, max_model_len=128, enable_prefix_caching=False,
    kv_cache_memory_bytes=1 << 24, num_gpu_blocks_override=4, distributed_executor_backend="uni",
    disable_log_stats=False,
)
reported = []
on_corruption(reported.append)
greedy = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)

def answer(lora=None):
    (result,) = engine.generate(["hello"], greedy, lora_request=lora, use_tqdm=False)
    return list(result.outputs[0].token_ids)

before = answer()
poisoned = [answer(LoRARequest("poison", 1, poison)) for _ in range(5)]
after = [answer() for _ in range(4)]
asking = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)

def told(texts):
    results = engine.generate(texts, asking, use_tqdm=False)
    return [[next(iter(each.values())).logprob for each in result.prompt_logprobs[1:]] for result in results]

texts = ["hello", "hello there", "there"]
at_once, alone = told(texts), [told([text])[0] for text in texts]
print(json.dumps({
    "before": before, "poisoned": poisoned, "after": after, "reported": reported, "at_once": at_once, "alone": alone,
}))
"""


@pytest.mark.stack
def test_adapter_of_nans_leaves_no_trace_in_the_kv_cache(tmp_path: Path) -> None:
    """Past the gate on purpose: this is the second line of defence, and without it every answer after is broken."""
    write_base(tmp_path / "base")
    nans = {name: value * float("nan") if ".lora_B." in name else value for name, value in lora_tensors(1).items()}
    poison = lora(1, tensors=nans).write(tmp_path / "poison")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | BYTECODE
    variables |= {"VLLM_PLUGINS": "weft", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    variables |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "OMP_NUM_THREADS": "1",
        "VLLM_COMPUTE_NANS_IN_LOGITS": "1",
    }
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "base"), str(poison)]
    run = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    answers = json.loads(run.stdout.splitlines()[-1])
    assert all(tokens != answers["before"] for tokens in answers["poisoned"])
    assert answers["after"] == [answers["before"]] * 4
    assert answers["reported"] == ["poison"] * 5, "each of its requests is known, and no other"
    assert max(map(len, answers["alone"])) > 1
    for told, expected in zip(answers["at_once"], answers["alone"], strict=True):
        assert told == pytest.approx(expected, abs=0.01), "prompts may be asked about at once"
