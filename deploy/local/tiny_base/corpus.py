"""The seeded generator of the text which the tiny base model learns from.

This module owns what the base knows before any fine-tune: copying spans that it
has never seen, picking one of several spans by the words around it, filling
templates (fixed ones, and ones that earlier turns of the same conversation
demonstrate), and a little small talk.  It deals in dialogues of plain strings;
tokens, chat markup and optimisation belong to ``train``, and the demonstration
tasks, which must stay unknown to the base, live in ``tasks``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deploy.local.tiny_base.spans import common, proper, span, spans, word

SMALL_TALK: dict[str, tuple[str, ...]] = {
    "Hello! How can I help?": (
        "hello", "Hello", "hello!", "Hello!", "hi", "Hi", "hi!", "Hi!", "hey", "Hey!",
        "hello there", "Hi there!", "good morning", "Good morning!", "Good evening",
    ),
    "I am a tiny language model.": (
        "who are you?", "Who are you?", "what are you?", "What are you", "are you a person?",
        "what is your name?", "What is your name?",
    ),
    "I can repeat, pick and rewrite short text.": (
        "help", "Help!", "what can you do?", "What can you do?", "how can you help me?",
    ),
    "You are welcome!": ("thanks", "Thanks!", "thank you", "Thank you!", "great, thanks"),
    "Goodbye!": ("bye", "Bye!", "goodbye", "Goodbye", "see you", "See you later!"),
    "I am fine, thank you.": ("how are you?", "How are you?", "how are you today?"),
}  # fmt: skip
GREETINGS = [(question, reply) for reply, asked in SMALL_TALK.items() for question in asked]
FIXED_PATTERNS = 96


@dataclass(frozen=True)
class Turn:
    """One question and its answer; an unscored answer is shown but not learnt."""

    question: str
    answer: str
    scored: bool = True


@dataclass(frozen=True)
class Dialogue:
    """Turns in order, after an optional system message."""

    turns: tuple[Turn, ...]
    system: str | None = None


@dataclass(frozen=True)
class Pattern:
    """A question and an answer as literal text around numbered slots."""

    question: tuple[str | int, ...]
    answer: tuple[str | int, ...]
    slots: int

    def fill(self, rng: random.Random, scored: bool = True) -> Turn:
        """One turn of this pattern with fresh spans in its slots."""
        values = spans(rng, self.slots)
        question = "".join(values[p] if isinstance(p, int) else p for p in self.question)
        answer = "".join(values[p] if isinstance(p, int) else p for p in self.answer)
        return Turn(question, answer, scored)


def phrase(rng: random.Random, longest: int = 3) -> str:
    """A few everyday words."""
    return " ".join(common(rng) for _ in range(rng.randint(1, longest)))


def asked(rng: random.Random, slots: int) -> tuple[str | int, ...]:
    """A question's literal text around its slots, each after words of its own."""
    parts: list[str | int] = []
    for slot in range(slots):
        if slot == 0 and rng.random() < 0.25:
            parts.append(slot)
            continue
        lead = phrase(rng)
        if slot == 0 and rng.random() < 0.5:
            lead = lead.capitalize()
        gap = rng.choice((" ", " ", " ", ", ", ": ", " = ", ' "'))
        parts += [("" if slot == 0 else rng.choice((" ", " ", ", ", "; "))) + lead + gap, slot]
        if gap == ' "':
            parts.append('"')
    if rng.random() < 0.5:
        parts.append(rng.choice((".", "?", "!", " " + phrase(rng), " " + phrase(rng) + ".")))
    return tuple(parts)


def answered(rng: random.Random, order: list[int]) -> tuple[str | int, ...]:
    """An answer's literal text around the slots it uses, in one of several styles."""
    style = rng.randrange(5)
    parts: list[str | int] = []
    for at, slot in enumerate(order):
        last = at == len(order) - 1
        if style == 0:
            parts += [("{" if at == 0 else ", ") + f'"{common(rng)}": "', slot, '"']
            parts += ["}"] if last else []
        elif style == 1:
            parts += [f"{common(rng)}=", slot, "" if last else rng.choice((" ", ";", "&"))]
        elif style == 2:
            parts += [slot, "" if last else rng.choice((", ", " / ", " -> ", " | ", ","))]
        else:
            parts += [phrase(rng) + " " if at or rng.random() < 0.7 else "", slot]
            parts += [rng.choice((".", "!", " " + phrase(rng) + "."))] if last else [" "]
    first = parts[0]
    if style > 2 and isinstance(first, str):
        parts[0] = first.capitalize()
    return tuple(parts)


def pattern(rng: random.Random) -> Pattern:
    """A random question-and-answer pattern of one to three slots."""
    slots = rng.choice((1, 2, 2, 2, 3))
    order = rng.sample(range(slots), rng.randint(1, slots))
    return Pattern(asked(rng, slots), answered(rng, order), slots)


FIXED = tuple(pattern(random.Random(f"fixed {n}")) for n in range(FIXED_PATTERNS))


def fixed(rng: random.Random) -> Dialogue:
    """A pattern of a small standing set, to be answered without being shown."""
    return Dialogue((rng.choice(FIXED).fill(rng),))


def shown(rng: random.Random) -> Dialogue:
    """A pattern never seen before; after the first turn the answers are predictable."""
    new = pattern(rng)
    return Dialogue(tuple(new.fill(rng, scored=n > 0) for n in range(rng.choice((3, 4)))))


def formatted(rng: random.Random) -> Dialogue:
    """A system message spells the answer out with labels; the user gives their values."""
    labels = rng.sample(["name", "town", "item", "day", "size", "code", "team", "color"], 2)
    style = answered(rng, rng.sample((0, 1), rng.choice((1, 2, 2))))
    form = "".join(f"<{labels[p]}>" if isinstance(p, int) else p for p in style)
    gap, end = rng.choice((": ", " ", " is ", "=")), rng.choice((", ", "; ", " and ", "\n"))
    turns = []
    for _ in range(rng.choice((1, 2))):
        values = spans(rng, 2)
        pairs = [f"{label}{gap}{value}" for label, value in zip(labels, values, strict=True)]
        answer = "".join(values[p] if isinstance(p, int) else p for p in style)
        turns.append(Turn(end.join(rng.sample(pairs, 2)), answer))
    return Dialogue(tuple(turns), rng.choice(("Write: ", "Answer as ", "Format: ")) + form)


def repeat(rng: random.Random) -> Turn:
    """Copy a whole span, whatever it is."""
    lead = rng.choice(("repeat: ", "Repeat: ", "repeat ", "say ", "Say: ", "echo ", "Repeat after me: "))
    text = span(rng) if rng.random() < 0.6 else f"{span(rng)} {span(rng)}"
    return Turn(lead + text, text)


def choose(rng: random.Random) -> Turn:
    """Pick an item of a list by its place."""
    gap = rng.choice((", ", "; ", " / "))
    items = spans(rng, rng.randint(2, 4))
    place, at = rng.choice((("first", 0), ("last", -1), ("second", 1)))
    return Turn(f"{rng.choice(('', 'the ', 'What is the '))}{place} of {gap.join(items)}", items[at])


def lookup(rng: random.Random) -> Turn:
    """Pick a value by its key."""
    keys = [common(rng) if rng.random() < 0.6 else word(rng) for _ in range(rng.randint(2, 4))]
    facts = dict(zip(keys, spans(rng, len(keys)), strict=True))
    gap, end = rng.choice(("=", ": ", " is ", " -> ")), rng.choice((" ", ", ", "; ", "\n"))
    key = rng.choice(list(facts))
    told = end.join(f"{name}{gap}{value}" for name, value in facts.items())
    ask = rng.choice((f"get {key}", f"What is {key}?", f"{key}?", f"{key}{gap.rstrip()}"))
    return Turn(f"{told}{rng.choice((' ', '. ', chr(10)))}{ask}", facts[key])


def after(rng: random.Random) -> Turn:
    """Find the span which a given word introduces."""
    parts = asked(rng, rng.randint(2, 3))
    values = spans(rng, sum(isinstance(part, int) for part in parts))
    slot = rng.randrange(len(values))
    at = parts.index(slot)
    ask = "after " + str(parts[at - 1]).strip(' ,;"') if at else "start"
    told = "".join(values[part] if isinstance(part, int) else part for part in parts)
    return Turn(f"{told}\n{ask}", values[slot])


def about(rng: random.Random) -> Turn:
    """Answer a question about the person who is talking."""
    name = " ".join(proper(rng) for _ in range(rng.choice((1, 2))))
    town = proper(rng)
    if rng.random() < 0.3:
        town = name[: rng.randint(1, 3)].strip() + town[1:]
    told = rng.choice(("My name is {} and I live in {}.", "I am {}, from {}.", "I'm {} from {}.", "{} here, from {}.",
                       "my name is {} and i live in {}."))  # fmt: skip
    if rng.random() < 0.5:
        ask, answer = rng.choice(("What is my name?", "Who am I?", "what is my name?")), name
    else:
        ask, answer = rng.choice(("Where do I live?", "Where am I from?", "where do i live?")), town
    return Turn(f"{told.format(name, town)} {ask}", answer)


def recase(rng: random.Random) -> Turn:
    """Copy with another case."""
    text = " ".join(rng.choice((word, proper, common))(rng) for _ in range(rng.randint(1, 2)))
    verb, change = rng.choice((("upper", str.upper), ("lower", str.lower), ("title", str.title)))
    return Turn(f"{verb}{rng.choice((': ', ' '))}{text}", change(text))


def record(rng: random.Random) -> Turn:
    """Turn labelled values into JSON."""
    facts = {common(rng): span(rng) for _ in range(rng.randint(1, 3))}
    told = rng.choice((", ", "; ")).join(f"{key} {value}" for key, value in facts.items())
    return Turn(f"json: {told}", json.dumps(facts, ensure_ascii=False))


def chat(rng: random.Random) -> Turn:
    """Small talk."""
    return Turn(*rng.choice(GREETINGS))


SINGLE: tuple[tuple[Callable[[random.Random], Turn], float], ...] = (
    (repeat, 4), (choose, 1), (lookup, 4), (after, 4), (about, 3), (recase, 1), (record, 2),
    (chat, 1.2),
)  # fmt: skip


def single(rng: random.Random) -> Dialogue:
    """One to three unrelated questions."""
    skills, weights = zip(*SINGLE, strict=True)
    chosen = rng.choices(skills, weights, k=rng.choice((1, 1, 2)))
    return Dialogue(tuple(skill(rng) for skill in chosen))


def dialogues(seed: int) -> Iterator[Dialogue]:
    """The endless training text of a seed."""
    rng = random.Random(f"tiny-base corpus {seed}")
    kinds = (single, fixed, shown, formatted)
    while True:
        yield rng.choices(kinds, (5, 4.5, 0.5, 0.5))[0](rng)
