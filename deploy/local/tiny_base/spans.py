"""Seeded words, names, numbers and codes for the pretraining text.

This module owns what the slots of the pretraining tasks are filled with.  Most
of it is made up on the spot, so that a model can only get it right by copying;
which tasks the spans appear in is the business of ``corpus``.
"""

from __future__ import annotations

import random


def split(text: str) -> list[str]:
    """Words as a list, which reads better than a column of quoted ones."""
    return text.split()


ONSETS = split("b c d f g h j k l m n p r s t v w z br ch cl dr fr gr kr pl sh sk sl st th tr qu")
VOWELS = split("a e i o u a e i o ai ea ee ia io oo ou y")
CODAS = split("b ck d g k l ll m n nd ng nt r rd rk rn rt s ss st t x z")
ACCENTS = str.maketrans("aeiou", "äéíöü")

COMMON = split(
    """
    about after again all and any are ask at bag bank been before best big bird blue boat book box boy bread
    bring build but buy by call came can car card cat clean close cold come cup cut date day deal deep did do
    dog door down draw dress drive each early east eat end far fast file find fire fish five flag fly for form
    four free from full game gave gift girl give glad go gold good got green grew group had half hand happy has
    have head heard help her here high his hold home hot house how ice if in into iron is it item job join just
    keep key kind king know lake land large last left let life light like line list live long look lost low made
    mail make many map mark may meet met milk moon more most move must near need new news next night no north
    note now number of off old on one only open or out over owner page paid park part party pass past path pay
    pick place plan plant play please price print put rain ran read red rest ride right ring river road rock
    room run sad said sail same sand save saw say sea seat see sell send sent set she shop short show side sign
    sing size snow so soft sold some song soon south stand star start stay stone stop street sun table take talk
    tall team tell ten that the their them then there these they thing this three time to today told took top
    town train trip try turn two under until up use very visit wait walk wall want warm was wash watch water way
    we week well went were west what when where which white who why will wind with word work write year yes yet
    you your
    """
)


def word(rng: random.Random) -> str:
    """A lower-case pronounceable word which most likely was never seen before."""
    syllables = rng.choice((1, 1, 2, 2, 2, 3))
    text = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables))
    return text + (rng.choice(CODAS) if rng.random() < 0.5 or syllables == 1 else "")


def noise(rng: random.Random) -> str:
    """Letters without any pattern, so that only copying can get them right."""
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8)))


def proper(rng: random.Random) -> str:
    """A capitalised word, now and then hyphenated, with an apostrophe or accented."""
    text = (word(rng) if rng.random() < 0.75 else noise(rng)).capitalize()
    kind = rng.random()
    if kind < 0.03:
        return text + "-" + word(rng).capitalize()
    if kind < 0.05:
        return "O'" + text
    return text.translate(ACCENTS) if kind < 0.07 else text


def number(rng: random.Random) -> str:
    """One to six digits."""
    return "".join(rng.choices("0123456789", k=rng.randint(1, 6)))


def code(rng: random.Random) -> str:
    """An identifier such as ``KX-4821``."""
    letters = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(1, 3)))
    return letters + rng.choice(("-", "", "_", "/")) + number(rng)


def span(rng: random.Random) -> str:
    """Something to be copied: a word, a name of several words, a number or a code."""
    kind = rng.random()
    if kind < 0.40:
        return " ".join(proper(rng) for _ in range(rng.choice((1, 1, 2, 2, 3))))
    if kind < 0.65:
        return " ".join(rng.choice((word, noise, common))(rng) for _ in range(rng.choice((1, 1, 2, 3))))
    return rng.choice((number, code, word, noise))(rng)


def common(rng: random.Random) -> str:
    """An everyday word."""
    return rng.choice(COMMON)


def spans(rng: random.Random, count: int) -> list[str]:
    """Several spans; often one begins like another, so that a few letters do not tell them apart."""
    made = [span(rng) for _ in range(count)]
    if count > 1 and rng.random() < 0.5:
        model, twin = rng.sample(range(count), 2)
        start = rng.choice(made[model].split())[: rng.randint(1, 4)]
        made[twin] = start + made[twin][rng.randint(0, 2) :].lower().lstrip()
    return made
