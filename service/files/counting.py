"""Whose tokenizer counts the tokens of files: that of the first base model of which the service has one."""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from service.contracts.base_model import BaseModelInfo

log = logging.getLogger("service.files")


@dataclass(frozen=True)
class Counting:
    """`sha256` tells reports that were counted by one tokenizer from those of another."""

    base: str
    path: str
    sha256: str


def counting(bases: Iterable[BaseModelInfo]) -> Counting | None:
    for base in bases:
        if base.tokenizer is not None and (sha256 := _sha256(base.tokenizer)) is not None:
            return Counting(base.name, base.tokenizer, sha256)
    return None


@cache
def _sha256(path: str) -> str | None:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        log.warning("tokens of files are estimated: the tokenizer cannot be read: %s", error)
        return None
