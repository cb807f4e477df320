"""Loads the base model once for the life of the process. Owns precision, device and what is switched off in it."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from trainer.engine.engine import Engine
from trainer.engine.limits import room
from trainer.engine.memory import Account, BaseSize

RECOMPUTE_FROM = 500_000_000
"""Weights. Below it a layer's activations are cheaper to keep than to compute again."""

ONE_THREAD_BELOW = 50_000_000
"""Weights. Matrices this small are done before a second thread has woken up; on shared cores the wait cost 12x."""

TOKEN_BUDGETS = {"cpu": 4096, "cuda": 16384}

SHARED_BUDGETS = {"cpu": 512, "cuda": 8192}
"""Padded tokens up to which jobs share a pass. With more the device is busy anyway, and small tensors stay in cache."""


def load_engine(source: str, device: str, threads: int = 0, token_budget: int = 0) -> Engine:
    """The engine alone of what `load` gives, for callers that keep no account."""
    engine, _ = load(source, device, threads, token_budget)
    return engine


def load(
    source: str, device: str, threads: int = 0, token_budget: int = 0, memory_bytes: int = 0
) -> tuple[Engine, Account]:
    """An engine over the base at `source`, a folder or a hub id, and the account of the `memory_bytes` beside the base.

    No code of the model's repository is ever run. 0 leaves a number to be found out or chosen by the base's size and
    the device.
    """
    logging.disable_progress_bar()
    where = torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    config: Any = AutoConfig.from_pretrained(source)
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    for name, value in vars(config).items():
        # Trained adapters must not depend on a random stream that other jobs share.
        if isinstance(value, float) and ("dropout" in name or "pdrop" in name):
            setattr(config, name, 0.0)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        source, config=config, dtype=torch.float32 if where.type == "cpu" else torch.bfloat16
    )
    if threads or model.num_parameters() < ONE_THREAD_BELOW:
        torch.set_num_threads(threads or 1)
    model.to(where)  # pyright: ignore[reportArgumentType]
    size = BaseSize.of(model, recompute=model.num_parameters() >= RECOMPUTE_FROM)
    limit = memory_bytes or room(where)
    budget = token_budget or size.budget(TOKEN_BUDGETS.get(where.type, TOKEN_BUDGETS["cpu"]), limit)
    shared = min(budget, SHARED_BUDGETS.get(where.type, SHARED_BUDGETS["cpu"]))
    engine = Engine(model, stored, budget, shared, size.recompute)
    return engine, Account(size, engine.modules, limit, budget, shared, on_host=where.type != "cuda")
