"""What usage costs, by the price list in the settings. Amounts are exact decimals of the settings' currency."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from service.settings import ServiceSettings

MILLION = Decimal(1_000_000)
GIGABYTE_MONTH = Decimal(10**9) * 30 * 24 * 3600
"""In byte-seconds."""


@dataclass(frozen=True)
class LineItem:
    """One line of a bill. `quantity` is in `unit`, of which `price` is the price of one."""

    name: str
    quantity: Decimal
    unit: str
    price: Decimal

    @property
    def amount(self) -> Decimal:
        return self.quantity * self.price


class Prices:
    def __init__(self, settings: ServiceSettings) -> None:
        self._lists: Mapping[str, Mapping[str, float]] = {
            "input_tokens": settings.input_price_per_million_tokens,
            "output_tokens": settings.output_price_per_million_tokens,
            "trained_tokens": settings.training_price_per_million_tokens,
        }
        self._storage = Decimal(str(settings.storage_price_per_gigabyte_month))

    def items(self, model: str, prompt: int, completion: int, trained: int) -> list[LineItem]:
        """The lines for what was used of one model, named as OpenAI's: '<base>, input_tokens'."""
        base = base_of(model)
        used = {"input_tokens": prompt, "output_tokens": completion, "trained_tokens": trained}
        return [
            LineItem(f"{base}, {kind}", Decimal(count) / MILLION, "million_tokens", self._price(kind, base))
            for kind, count in used.items()
            if count
        ]

    def storage(self, byte_seconds: float) -> LineItem:
        quantity = Decimal(str(byte_seconds)) / GIGABYTE_MONTH
        return LineItem("file storage", quantity, "gigabyte_months", self._storage)

    def _price(self, kind: str, base: str) -> Decimal:
        return Decimal(str(self._lists[kind].get(base, 0.0)))


def base_of(model: str) -> str:
    """The base model of a name in the ledger: a base's own, or that of a fine-tuned model."""
    return model.split(":")[1] if model.startswith("ft:") and model.count(":") >= 2 else model
