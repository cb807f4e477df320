"""An adapter merged into its base: whole weights that any library loads, with config, tokenizer and chat template."""

from pathlib import Path

from peft import PeftModel
from transformers import AutoTokenizer

from trainer.convert.base import load_base
from trainer.folder import whole_folder

SHARD = "4GB"
"""Object stores take no more than 5 GiB at once."""


def merge(source: str, adapter: Path, out: Path) -> None:
    """In the base's own type. The adapter is one of ours, so it has been judged."""
    model = PeftModel.from_pretrained(load_base(source, "auto"), adapter)
    merged = model.merge_and_unload()
    with whole_folder(out) as folder:
        merged.save_pretrained(folder, max_shard_size=SHARD)
        AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
