"""What is read from a base model's folder, and what is said where the folder cannot be a base."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deploy.local import base_model
from deploy.local.folder import StackError
from service.contracts.chat_template import chat_template

TEMPLATE = "{{ messages }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The least that is a base: two weight files, a config, a tokenizer with a chat template."""
    path = tmp_path / "Some Model"
    path.mkdir()
    save_file({"a": torch.zeros(4, 3)}, path / "model-1.safetensors")
    save_file({"b": torch.zeros(5), "c": torch.zeros(())}, path / "model-2.safetensors")
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "max_position_embeddings": 512}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return path


def test_reads_the_facts(folder: Path) -> None:
    facts = base_model.describe(str(folder))
    assert (facts.name, facts.source) == ("Some-Model", str(folder))
    assert (facts.architecture, facts.hidden_size, facts.context_length) == ("LlamaForCausalLM", 64, 512)
    assert facts.parameters == 4 * 3 + 5 + 1
    assert facts.chat_template_sha256 is not None


def test_the_tiny_base_is_the_default() -> None:
    facts = base_model.describe(None)
    assert facts.name == "weft-tiny"
    assert facts.parameters is not None
    assert facts.parameters < 4_000_000


@pytest.mark.parametrize("vocabulary", [{"a": 0, "\u0120long": 1}, [["a", -1.0], ["\u0120long", -2.0]]])
def test_the_longest_token_is_of_the_vocabulary_or_added_to_it(folder: Path, vocabulary: object) -> None:
    facts = base_model.describe(str(folder))
    assert (facts.longest_token, facts.tokenizer) == (None, None)
    tokenizer: dict[str, object] = {"model": {"vocab": vocabulary}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    facts = base_model.describe(str(folder))
    assert (facts.longest_token, facts.tokenizer) == (5, str(folder / "tokenizer.json"))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"added_tokens": [{"content": "<|begin|>"}]}))
    assert base_model.describe(str(folder)).longest_token == 9


def test_fingerprint_follows_weights_and_config_and_nothing_else(folder: Path) -> None:
    before = base_model.describe(str(folder)).fingerprint
    (folder / "README.md").write_text("words")
    assert base_model.describe(str(folder)).fingerprint == before
    save_file({"b": torch.ones(5), "c": torch.zeros(())}, folder / "model-2.safetensors")
    after_weights = base_model.describe(str(folder)).fingerprint
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 1}))
    assert len({before, after_weights, base_model.describe(str(folder)).fingerprint}) == 3


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", TEMPLATE),
        ("chat_template.json", json.dumps({"chat_template": TEMPLATE})),
        ("tokenizer_config.json", json.dumps({"chat_template": TEMPLATE})),
        ("tokenizer_config.json", json.dumps({"chat_template": [{"name": "default", "template": TEMPLATE}]})),
    ],
)
def test_finds_the_chat_template_wherever_tokenizers_keep_it(folder: Path, file: str, content: str) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / file).write_text(content)
    assert chat_template(folder) == TEMPLATE
    assert base_model.describe(str(folder)).chat_template_sha256 == hashlib.sha256(TEMPLATE.encode()).hexdigest()


def test_takes_the_text_part_of_a_multimodal_config(folder: Path) -> None:
    config = {"architectures": ["X"], "text_config": {"hidden_size": 32, "max_position_embeddings": 128}}
    (folder / "config.json").write_text(json.dumps(config))
    facts = base_model.describe(str(folder))
    assert (facts.hidden_size, facts.context_length) == (32, 128)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", None, "holds no model"),
        ("config.json", b"{", "is not JSON"),
        ("config.json", b"{}", "holds no model"),
        ("config.json", b'{"architectures": []}', "cannot be read as a base model"),
        ("tokenizer_config.json", None, "has no chat template"),
        ("model-1.safetensors", b"cut", "cannot be read as a base model"),
    ],
)
def test_says_what_is_wrong_with_a_folder(folder: Path, file: str, content: bytes | None, says: str) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(StackError, match=says):
        base_model.describe(str(folder))


def test_a_missing_folder_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="there is no folder"):
        base_model.describe(str(tmp_path / "absent"))


def test_a_hub_id_without_a_way_to_the_hub_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StackError, match=r"not in the cache and cannot be fetched.*name a local folder"):
        base_model.describe("some-organisation/some-model")


@pytest.mark.parametrize(
    ("source", "name"),
    [("org/Qwen3-0.6B", "Qwen3-0.6B"), ("my model:v2", "my-model-v2"), ("...", "base"), ("x" * 80, "x" * 64)],
)
def test_public_names_have_no_separator_of_model_names(source: str, name: str) -> None:
    assert base_model.public_name(source) == name
