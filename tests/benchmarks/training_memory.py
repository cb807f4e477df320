"""Memory of the training engine, formula against measured: `make bench-training-memory`. The last line is JSON.

For bases of several shapes: a resident job, a training pass, an evaluation, a pass of pairs, a checkpoint and a
growing bank. On an accelerator its own allocator is asked, else the process's resident set at its peak. A ratio is
measured over formula, calibration included. Fails where one exceeds 1 by more than pages and small objects do: the
account would let in what does not fit.
"""

import ctypes
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.checkpoint import CheckpointState, write_checkpoint
from trainer.engine.adapter import Adapter, AdapterSettings, Measured, Preference, Supervised, Work
from trainer.engine.engine import Engine
from trainer.engine.memory import CHECKPOINT_COPIES, BaseSize, copy_bytes, slot_bytes
from trainer.engine.optimizer import AdamParams
from trainer.engine.plan import Row

SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        "5M": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "vocab_size": 4096},
        "42M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "vocab_size": 32000},
    },
    "cuda": {
        "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "vocab_size": 151936},
        "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256},
    },
}
TOKENS = {"cpu": (256, 1024, 4096), "cuda": (1024, 4096, 8192)}
RESIDENTS = 8
RANKS = (8, 32)
WIDTH = 256
MOST = 1.05
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Found:
    base: str
    recompute: bool
    what: str
    formula: int
    measured: int

    @property
    def name(self) -> str:
        return f"{self.base} {'recomputed' if self.recompute else 'kept'} {self.what}"

    @property
    def ratio(self) -> float:
        return self.measured / self.formula


def held() -> int:
    gc.collect()
    if DEVICE.type == "cuda":
        return torch.cuda.memory_allocated(DEVICE)
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def peak(work: Callable[[], object]) -> int:
    """Bytes that `work` needed at once beyond what was held before."""
    before = held()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats(DEVICE)
    else:
        Path("/proc/self/clear_refs").write_text("5")
    work()
    most = torch.cuda.max_memory_allocated(DEVICE) if DEVICE.type == "cuda" else _status("VmHWM")
    return most - before


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


class Bench:
    """One base, in one of the two ways its layers are kept."""

    def __init__(self, name: str, shape: dict[str, Any], recompute: bool) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            **shape, num_attention_heads=shape["hidden_size"] // 64, num_key_value_heads=4, tie_word_embeddings=True
        )
        dtype = torch.float32 if DEVICE.type == "cpu" else torch.bfloat16
        with torch.device(DEVICE):
            model = LlamaForCausalLM(config)
        model.to(dtype=dtype)  # pyright: ignore[reportCallIssue]
        self._name, self._size = name, BaseSize.of(model, recompute)
        self._most = TOKENS[DEVICE.type][-1]
        self._engine = Engine(model, dtype, 2 * self._most, self._most, recompute)
        self._vocabulary = config.vocab_size
        self._random = np.random.default_rng(0)

    def run(self) -> Iterator[Found]:
        first = self._adapter(RANKS[0])
        self._train(first, WIDTH)
        self._engine.release(first)
        yield from self._residents()
        adapter = self._adapter(RANKS[0])
        self._train(adapter, WIDTH)
        for tokens in TOKENS[DEVICE.type]:
            work = self._work(adapter, tokens)
            yield self._found(f"train {tokens}", self._size.training_pass(tokens), lambda work=work: self._step(work))
        work = self._work(adapter, self._most // 2, compared=True)
        yield self._found(
            f"evaluate {self._most}", self._size.evaluation_pass(self._most), lambda: self._engine.evaluate([work])
        )
        pairs = self._work(adapter, self._most // 2, paired=True)
        yield self._found(f"pairs {self._most}", self._size.training_pass(self._most), lambda: self._step(pairs))
        yield self._checkpoint(adapter)

    def _residents(self) -> Iterator[Found]:
        for rank in RANKS:
            slot = slot_bytes(self._engine.modules, rank)
            before, adapters = held(), [self._adapter(rank) for _ in range(RESIDENTS)]
            for one in adapters:
                self._train(one, WIDTH)
            measured = (held() - before) // RESIDENTS
            yield Found(self._name, self._size.recompute, f"resident rank {rank}", slot, measured)
            # What is there already counts too: the old bank is released only once the new one is filled.
            grown = peak(lambda rank=rank, adapters=adapters: adapters.append(self._adapter(rank)))
            yield Found(self._name, self._size.recompute, f"growth rank {rank}", 2 * RESIDENTS * slot, grown)
            for adapter in adapters:
                self._engine.release(adapter)

    def _checkpoint(self, adapter: Adapter) -> Found:
        formula = CHECKPOINT_COPIES * copy_bytes(self._engine.modules, RANKS[0], adapter.trained)
        state = CheckpointState(job_id="ftjob-1", spec_sha256="", step=1, trained_tokens=1)
        with tempfile.TemporaryDirectory() as folder:
            return self._found(
                "checkpoint",
                formula,
                lambda: write_checkpoint(Path(folder) / "made", state, *self._engine.save(adapter)),
            )

    def _found(self, what: str, formula: int, work: Callable[[], object]) -> Found:
        return Found(self._name, self._size.recompute, what, formula, peak(work))

    def _adapter(self, rank: int) -> Adapter:
        return self._engine.create_adapter(AdapterSettings(rank, 16.0, "all-linear", seed=1))

    def _work(self, adapter: Adapter, tokens: int, compared: bool = False, paired: bool = False) -> Work:
        ones = np.ones(WIDTH, dtype=np.float32)
        ids = [self._random.integers(0, self._vocabulary, WIDTH).astype(np.int32) for _ in range(tokens // WIDTH)]
        objective = Preference(0.1) if paired else Supervised()
        return Work(adapter, [Row(row, ones) for row in ids], float(tokens), objective, compared)

    def _train(self, adapter: Adapter, tokens: int) -> None:
        self._step(self._work(adapter, tokens))
        self._engine.optim_step([(adapter, AdamParams(1e-4))])

    def _step(self, work: Work) -> None:
        (outcome,) = self._engine.forward_backward([work])
        assert isinstance(outcome, Measured), outcome


def main() -> int:
    torch.set_num_threads(1)
    found: list[Found] = []
    for name, shape in SHAPES[DEVICE.type].items():
        # Bases worth an accelerator are never kept whole.
        for recompute in (False, True) if DEVICE.type == "cpu" else (True,):
            for one in Bench(name, shape, recompute).run():
                found.append(one)
                print(
                    f"{one.name:34} formula {one.formula / 2**20:9.1f} MiB, "
                    f"measured {one.measured / 2**20:9.1f} MiB, ratio {one.ratio:.2f}",
                    flush=True,
                )
    ratios = {one.name: round(one.ratio, 2) for one in found}
    met = all(one.ratio <= MOST for one in found)
    print(json.dumps({"device": DEVICE.type, "met": met, "highest": max(ratios.values()), "ratios": ratios}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
