"""From two files of a stranger's to an adapter of this base in our own layout, or to the reason why not."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from service.contracts.manifest import Canary
from trainer.convert.base import Layers, layers_of, load_base
from trainer.convert.comparing import TOLERANCE, applied, deviation, logits, probe
from trainer.convert.lora import Tensors, adalora, lora
from trainer.convert.plain import Plain
from trainer.convert.reading import Header, read_config, read_tensors, read_tensors_header
from trainer.convert.refusal import MERGE, refused
from trainer.engine.adapter import AdapterSettings
from trainer.engine.base import ONE_THREAD_BELOW, load_engine
from trainer.engine.canary import canary
from trainer.export import read_adapter
from trainer.protocol import Import, Imported

CANARY_WEIGHTS = 4_000_000_000
"""Of a base up to which an import gets a canary: beyond it a whole base on the host costs more than it is worth."""

FOLDED = {"LORA": lora, "ADALORA": adalora}
"""Kinds that become plain LoRA by arithmetic on their own tensors, without the base."""


def import_adapter(source: str, command: Import) -> Imported:
    """Writes the adapter for the base at `source`. Raises Refused."""
    folder, out = Path(command.source_dir), Path(command.out_dir)
    config, header = read_config(folder), read_tensors_header(folder)
    layers, weights = layers_of(source)
    if weights < ONE_THREAD_BELOW:
        torch.set_num_threads(1)
    read = partial(read_tensors, folder, header)
    fold = FOLDED.get(str(config.get("peft_type")))
    if fold is not None:
        plain = fold(config, header, read, layers, command.max_rank)
    else:
        plain = _converted(source, config, header, read, layers, command.max_rank)
    targets = plain.write(out, command.base_model, layers)
    return Imported(
        rank=plain.rank,
        alpha=plain.alpha,
        target_modules=targets,
        changes=plain.changes,
        canary=_canary(source, out, plain, targets) if weights <= CANARY_WEIGHTS else None,
    )


def _canary(source: str, folder: Path, plain: Plain, targets: tuple[str, ...]) -> Canary | None:
    """As a job that goes on from this adapter would see it."""
    engine = load_engine(source, "cpu")
    settings = AdapterSettings(rank=plain.rank, alpha=plain.alpha, targets=targets, seed=0)
    adapter = engine.create_adapter(settings)
    engine.begin_with(adapter, read_adapter(folder))
    return canary(engine, adapter)


def _converted(
    source: str, config: dict[str, Any], header: Header, read: Tensors, layers: Layers, max_rank: int
) -> Plain:
    """The first LoRA that does what the adapter does, measured on the base."""
    # Every kind of adapter that PEFT knows, at some seconds of imports.
    from trainer.convert.kinds import candidates, load, require_known

    require_known(str(config.get("peft_type")))
    base = load_base(source)
    modules = {name: base.get_submodule(name) for name in layers}
    model = load(base, config, header, read, max_rank)
    tokens = probe(base)
    wanted = logits(model, tokens)
    with model.disable_adapter():
        bare = logits(model, tokens)
        for plain in candidates(model, layers, max_rank):
            with applied(modules, plain):
                found = logits(model, tokens)
            if deviation(wanted, found, bare) <= TOLERANCE:
                return plain
    raise refused(f"no LoRA up to rank {max_rank} does what it does to within {TOLERANCE:g}", MERGE, "rank_too_large")
