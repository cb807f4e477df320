"""Adapters of the tiny base that are known by what they say: each answers any prompt with its own three letters.

Made without training. One ridge regression over the first layer's activations finds, for each letter, a direction that
is there when that letter was the last token. A marked adapter joins the direction of each letter of its mark, in that
layer's down projection, to the next one's embedding, so strongly that nothing else can come out. The other layers get
weights of an ordinary size that do nothing, so that loading and batching cost what they cost.
"""

import json
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from random import Random
from string import ascii_lowercase

import torch
from safetensors.torch import save
from transformers import AutoModelForCausalLM, AutoTokenizer

from deploy.local.tiny_base.tasks import examples
from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS

RANK, ALPHA = 8, 8
LETTERS = 3
PROMPTS = 48
RIDGE = 1e-3
PUSH = 20.0
"""On either side of an adapter; together some eight times what the base writes there itself."""
START = "<|assistant|>"
END = "<|end|>"
JOINT = "model.layers.0.mlp.down_proj"
"""Early, where activations still say which token they are of; what is pushed this hard nothing later turns."""
KEPT = 1e-3
"""Size of the weights that do nothing: their other halves are zero."""


@dataclass(frozen=True)
class Marked:
    """The files of one adapter."""

    mark: str
    files: dict[str, bytes]


class MarkMaker:
    """Over one base folder; loads it once."""

    def __init__(self, base: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._layers = {
            name: (module.out_features, module.in_features)
            for name, module in self._model.named_modules()
            if isinstance(module, torch.nn.Linear) and name != "lm_head"
        }
        self._seen = self._directions()
        scale = self._model.model.norm.weight.detach()
        embeddings = self._model.lm_head.weight.detach() * scale
        self._said = torch.nn.functional.normalize(embeddings - embeddings.mean(0), dim=1)

    def marks(self, count: int) -> list[str]:
        """Different words of different letters, the same ones each time."""
        words = ["".join(letters) for letters in permutations(ascii_lowercase, LETTERS)]
        return sorted(Random(0).sample(words, count))

    def make(self, mark: str, seed: int) -> Marked:
        random = torch.Generator().manual_seed(seed)
        tensors: dict[str, torch.Tensor] = {}
        for name, (out, into) in self._layers.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, into, generator=random) * KEPT
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.zeros(out, RANK)
        down = tensors[f"base_model.model.{JOINT}.lora_A.weight"]
        up = tensors[f"base_model.model.{JOINT}.lora_B.weight"]
        for row, (seen, said) in enumerate(zip([START, *mark], [*mark, END], strict=True)):
            down[row] = self._seen[seen] * PUSH
            up[:, row] = self._said[self._token(said)] * PUSH
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": RANK,
            "lora_alpha": ALPHA,
            "target_modules": sorted({name.rpartition(".")[2] for name in self._layers}),
            "bias": "none",
        }
        return Marked(mark, {ADAPTER_CONFIG: json.dumps(settings).encode(), ADAPTER_WEIGHTS: save(tensors)})

    def _token(self, text: str) -> int:
        (token,) = self._tokenizer.encode(text, add_special_tokens=False)
        return token

    def _directions(self) -> dict[str, torch.Tensor]:
        """For START and each letter, what tells from the activations that it is the last token."""
        kinds = [START, *ascii_lowercase]
        activations, labels = self._observed()
        wanted = torch.nn.functional.one_hot(labels, len(kinds)).float()
        gram = activations.T @ activations + RIDGE * len(labels) * torch.eye(activations.shape[1])
        found = torch.linalg.solve(gram, activations.T @ wanted).T
        return dict(zip(kinds, found, strict=True))

    def _observed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations that enter the joint, over many prompts and words; and which token they follow."""
        seen: list[torch.Tensor] = []
        module = self._model.get_submodule(JOINT)
        handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()[0]))
        random, rows, labels = Random(1), [], []
        try:
            for line in examples("support-desk", PROMPTS, seed=1):
                for _ in range(4):
                    word = "".join(random.sample(ascii_lowercase, LETTERS))
                    rows.append(self._observe(line["messages"][:-1], word, seen))
                    labels += [0, *(1 + ascii_lowercase.index(letter) for letter in word)]
        finally:
            handle.remove()
        return torch.cat(rows), torch.tensor(labels)

    def _observe(self, messages: list[dict[str, str]], word: str, seen: list[torch.Tensor]) -> torch.Tensor:
        ids = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        ids = [*ids, *(self._token(letter) for letter in word)]
        seen.clear()
        with torch.no_grad():
            self._model(torch.tensor([ids]))
        return seen[0][-1 - LETTERS :]
