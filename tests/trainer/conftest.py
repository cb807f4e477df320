"""What trainer tests share: a tiny base model on disk."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.trainer.tiny import write_base

    return write_base(tmp_path_factory.mktemp("base") / "model")
