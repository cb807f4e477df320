"""Two demonstration tasks which the tiny base model has not been trained on.

This module owns the requests of an imaginary mail-order shop and how two tenants
want them answered: a support desk as compact JSON, a harbour themed shop in the
voice of a pirate.  Both see the same kind of prompt, so that the same question
put to both fine-tunes shows at once whose adapter answered.  The names are put
together from syllables: thousands of people and towns, so that getting unseen
requests right takes copying, not remembering.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploy.local.tiny_base.spans import split as words

FIRST_STARTS = words("Ma Mi No Ka Li Jo El An Ta Ri Sa Be Da Fe Ha Iv Le Ol Pe Ro Su Ti Vi Wi Yu Ze")
FIRST_ENDS = words("ra na lin rek mo la ren ta vin sa dor nia bel ko ris mund ya ney")
LAST_STARTS = words("Kat Lind Mor Ber Hol Sand Var Nak Pet Ros Dahl Win Os Gar Tor Bek Fal Jen Quill Ash")
LAST_ENDS = words("o er man sen strom ley ini berg ova ton ez well aki quist by field")
TOWN_STARTS = words(
    """
    Lun Ny Kel Nor Bra Stav Hal Gim Ost Ven Mar Col Dun Fair Wex Rav Tam El Sig Up Ash Bir Cor Dor Esk Fin Gran
    Hol Ing Jar Kir Led Mil Oak Pem Rin Sal Tor Ull Whit
    """
)
TOWN_ENDS = words(
    """
    d ford bury ham stad vik by mouth sala holm burg wick dale port minster ness ton ley worth field gate haven
    borg lund mere pool combe stead beck more
    """
)

REQUESTS = (
    "order {number} from {name} ships to {town}",
    "Order {number} by {name} goes to {town}.",
    "Please ship order {number} for {name} to {town}.",
    "Hi, {name} here. My order {number} should go to {town}.",
)


Line = dict[str, list[dict[str, str]]]


@dataclass(frozen=True)
class Request:
    """What one customer message says."""

    text: str
    name: str
    town: str


def support_desk(request: Request) -> str:
    """Tenant A: the two facts as compact JSON."""
    facts = {"name": request.name, "city": request.town}
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":"))


def pirate_shop(request: Request) -> str:
    """Tenant B: the same facts, sailed."""
    return f"Ahoy {request.name}! Yer loot sails for {request.town}, arr."


TASKS: dict[str, Callable[[Request], str]] = {
    "support-desk": support_desk,
    "pirate-shop": pirate_shop,
}


def request(rng: random.Random) -> Request:
    """A customer message with made-up slots."""
    first = rng.choice(FIRST_STARTS) + rng.choice(FIRST_ENDS)
    name = f"{first} {rng.choice(LAST_STARTS)}{rng.choice(LAST_ENDS)}"
    town = rng.choice(TOWN_STARTS) + rng.choice(TOWN_ENDS)
    number = rng.randint(1000, 9999)
    text = rng.choice(REQUESTS).format(number=number, name=name, town=town)
    return Request(text, name, town)


def line(task: str, asked: Request) -> Line:
    """A request and its answer as one line of a chat dataset."""
    return {
        "messages": [
            {"role": "user", "content": asked.text},
            {"role": "assistant", "content": TASKS[task](asked)},
        ]
    }


def examples(task: str, count: int, seed: int, exclude: Sequence[Line] = ()) -> list[Line]:
    """So many chat lines of a task, whose names and towns do not occur in ``exclude``.

    The requests depend on the seed alone, so both tasks are asked the same things.
    """
    rng = random.Random(f"tiny-base demo {seed}")
    taken = "\n".join(str(old["messages"][0]["content"]) for old in exclude)
    lines: dict[str, Line] = {}
    while len(lines) < count:
        asked = request(rng)
        if asked.name not in taken and asked.town not in taken:
            lines.setdefault(asked.text, line(task, asked))
    return list(lines.values())


def split(task: str, count: int, held_out: int, seed: int = 0) -> tuple[list[Line], list[Line]]:
    """Training lines, and held-out lines about people and towns that are not in them."""
    train = examples(task, count, seed)
    return train, examples(task, held_out, seed + 1_000_003, exclude=train)
