"""Why an adapter cannot be imported, in words for its owner."""

from typing import NoReturn

MERGE = (
    "Merge it into its base with PEFT's merge_and_unload() and ask the operator to offer the result as a base model, "
    "or train it again as plain LoRA"
)
"""What is left to do with kinds that no shared engine can serve."""


class Refused(Exception):
    """`code` for programs, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def refuse(reason: str, advice: str, code: str = "adapter_invalid") -> NoReturn:
    """`reason` completes "This adapter cannot be imported: ", `advice` is a sentence without its full stop."""
    raise refused(reason, advice, code)


def refused(reason: str, advice: str, code: str = "adapter_invalid") -> Refused:
    return Refused(code, f"This adapter cannot be imported: {reason}. {advice}.")
