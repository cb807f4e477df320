"""Files that would harm: none gets through to a replica, and none takes more time or memory than it may."""

import json
import struct
import sys
import time
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from inference.gate import AdapterGate, layers_of_base
from service.contracts.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tests.inference.adapters import FINGERPRINT, HIDDEN, INNER, lora_config, pack
from tests.inference.hostile import DOWN, HOSTILE
from tests.trainer.convert.foreign import CONVERTED, edit, imported, made
from trainer.agent.endings import JobError
from trainer.agent.transfer_child import Broken, convert
from trainer.convert.refusal import Refused
from trainer.protocol import Import, Imported

CASES = {name: make for name, (make, _) in HOSTILE.items()}
ABOUT_MANIFESTS = {
    "another base",
    "another chat template",
    "rank above the replica's",
    "rank that the configuration denies",
    "no weights",
}
ABOUT_MANIFESTS |= {"alpha that the configuration denies", "no configuration", "hundred files", "its own manifest"}
ABOUT_MANIFESTS |= {name for name in CASES if name.endswith(("beside", "of megabytes")) and "header" not in name}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one that the gate's hostile adapters are made for."""
    config = LlamaConfig(
        vocab_size=384, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=2, num_attention_heads=4
    )
    folder = tmp_path_factory.mktemp("hostile") / "base"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gate(base: Path) -> AdapterGate:
    return AdapterGate(lambda: layers_of_base(str(base)), lambda: None, base_fingerprint=FINGERPRINT, max_rank=64)


@pytest.mark.parametrize("name", sorted(CASES.keys() - ABOUT_MANIFESTS))
def test_what_the_gate_refuses_is_refused_or_made_good(
    base: Path, gate: AdapterGate, tmp_path: Path, name: str
) -> None:
    source = CASES[name]().write(tmp_path / "theirs")
    began = time.monotonic()
    told: Imported | Refused
    try:
        told = imported(source, base, tmp_path / "ours")
    except Refused as refused:
        told = refused
    if isinstance(told, Refused):
        assert len(str(told)) < 1000
        assert not (tmp_path / "ours").exists()
    else:
        # Some of what a config says has no meaning once it is written anew: the gate is to have the last word.
        files = {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir()}
        adapter = pack(files, rank=told.rank, alpha=told.alpha)
        gate.check_manifest(adapter.manifest)
        gate.check_files(tmp_path / "ours", adapter.manifest)
        assert "target" in name or "alpha" in name, "nothing else can be made good"
    assert time.monotonic() - began < 30


def declared(folder: Path, header: dict[str, object], size: int) -> Path:
    """A file of `size` bytes that takes no room on the disk."""
    folder.mkdir()
    (folder / ADAPTER_CONFIG).write_text(json.dumps(lora_config()))
    text = json.dumps(header).encode()
    with (folder / ADAPTER_WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    return folder


def converter(base: Path, gibibytes: float = 2.0) -> tuple[str, ...]:
    limit = str(int(gibibytes * (1 << 30)))
    return (sys.executable, "-m", "trainer.convert", "--base", str(base), "--memory-bytes", limit)


async def refusal(base: Path, source: Path, out: Path) -> str:
    command = Import(source_dir=str(source), out_dir=str(out), base_model="weft-tiny", max_rank=64)
    with pytest.raises(JobError) as refused:
        await convert(converter(base), command, 120)
    return refused.value.failure.message


async def test_ten_gigabytes_are_refused_by_their_header(base: Path, tmp_path: Path) -> None:
    elements = 10 << 28
    header = {DOWN: {"dtype": "F32", "shape": [4, elements // 4], "data_offsets": [0, 4 * elements]}}
    source = declared(tmp_path / "theirs", header, 4 * elements)
    assert "lacks one of" in await refusal(base, source, tmp_path / "ours")


async def test_a_hundred_thousand_tensors_are_not_read(base: Path, tmp_path: Path) -> None:
    header = {f"{DOWN}.{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(100_000)}
    source = declared(tmp_path / "theirs", header, 0)
    assert "header claims" in await refusal(base, source, tmp_path / "ours")


async def test_a_config_that_asks_for_the_moon_ends_its_own_process_at_most(base: Path, tmp_path: Path) -> None:
    made(tmp_path / "theirs", base, CONVERTED["VBLORA"])
    for changes in ({"num_vectors": 1 << 40}, {"vector_length": -1}, {"num_vectors": [1] * 9}, {"r": 10**30}):
        edit(tmp_path / "theirs", **changes)
        with pytest.raises(Refused):
            imported(tmp_path / "theirs", base, tmp_path / "ours")


async def test_too_little_memory_and_too_little_time_end_the_child(base: Path, tmp_path: Path) -> None:
    made(tmp_path / "theirs", base, CONVERTED["VERA"])
    command = Import(
        source_dir=str(tmp_path / "theirs"), out_dir=str(tmp_path / "ours"), base_model="weft-tiny", max_rank=64
    )
    with pytest.raises(Broken):
        await convert(converter(base, 0.05), command, 120)
    with pytest.raises(JobError) as slow:
        await convert(converter(base), command, 0.2)
    assert slow.value.failure.code == "too_slow"


def test_the_sound_one_is_sound(base: Path, tmp_path: Path) -> None:
    """Else the cases above would show nothing."""
    from tests.inference.adapters import lora

    told = imported(lora(1).write(tmp_path / "theirs"), base, tmp_path / "ours")
    assert (told.rank, told.alpha) == (4, 8.0)
