"""The base as a conversion needs it: the shapes of its layers without a weight, or the whole of it on the host."""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

Layers = Mapping[str, tuple[int, int]]
"""What adapters may change, by module name: (output features, input features)."""


def layers_of(source: str) -> tuple[Layers, int]:
    """Every linear layer but the output embedding, as training has it, and the number of the base's weights."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    layers = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    return layers, model.num_parameters()


def load_base(source: str, dtype: "torch.dtype | str" = torch.float32) -> PreTrainedModel:
    """On the host, whatever the worker trains on: its accelerator belongs to the jobs."""
    logging.disable_progress_bar()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=False)
    model.requires_grad_(False)
    return model.eval()
