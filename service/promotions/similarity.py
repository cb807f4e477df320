"""How alike two texts are, from 0 to 1, by the metrics of OpenAI's `text_similarity` grader.

BLEU and GLEU look at words and punctuation marks as they are written, ROUGE at words alone, whatever their case. The
scripts that write no spaces are taken character by character.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from functools import partial

COMPARED = 2000
"""Characters of each text that are looked at; the time it takes grows with their product."""
LONGEST = 4
"""Of the n-grams of BLEU and GLEU."""
_SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORDS = re.compile(rf"[{_SINGLE}]|[^\W_{_SINGLE}]+")
_TOKENS = re.compile(rf"[{_SINGLE}]|[^\W{_SINGLE}]+|[^\w\s]")


def similarity(metric: str, text: str, reference: str) -> float:
    return METRICS[metric](text[:COMPARED], reference[:COMPARED])


def fuzzy_match(text: str, reference: str) -> float:
    """Twice the characters that match in order, of those of both texts (Ratcliff and Obershelp)."""
    return SequenceMatcher(None, text, reference, autojunk=False).ratio()


def bleu(text: str, reference: str) -> float:
    """BLEU-4 of one sentence (Papineni et al. 2002), smoothed as sacreBLEU does: the first order of n-grams without a
    match counts as half a match, the next as a quarter, and those that the text is too short for do not count.
    """
    tokens, expected = _TOKENS.findall(text), _TOKENS.findall(reference)
    if not tokens or not expected:
        return float(text == reference)
    logs: list[float] = []
    halved = 1.0
    for order in range(1, min(LONGEST, len(tokens)) + 1):
        grams = _grams(tokens, order)
        matches = (grams & _grams(expected, order)).total()
        if not matches and order == 1:
            return 0.0
        halved = halved if matches else halved / 2
        logs.append(math.log((matches or halved) / grams.total()))
    brevity = min(0.0, 1 - len(expected) / len(tokens))
    return math.exp(brevity + sum(logs) / len(logs))


def gleu(text: str, reference: str) -> float:
    """The smaller of precision and recall of all n-grams together (Wu et al. 2016)."""
    tokens, expected = _TOKENS.findall(text), _TOKENS.findall(reference)
    if not tokens or not expected:
        return float(text == reference)
    mine, theirs = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for order in range(1, LONGEST + 1):
        mine += _grams(tokens, order)
        theirs += _grams(expected, order)
    return (mine & theirs).total() / max(mine.total(), theirs.total())


def rouge_n(order: int, text: str, reference: str) -> float:
    """The harmonic mean of precision and recall of n-grams (Lin 2004)."""
    words, expected = _words(text), _words(reference)
    mine, theirs = _grams(words, order), _grams(expected, order)
    if not mine and not theirs:
        return float(words == expected and (bool(words) or text == reference))
    return 2 * (mine & theirs).total() / (mine.total() + theirs.total())


def rouge_l(text: str, reference: str) -> float:
    """The same of the longest common subsequence of words."""
    words, expected = _words(text), _words(reference)
    if not words and not expected:
        return float(text == reference)
    return 2 * _common(words, expected) / (len(words) + len(expected))


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    **{f"rouge_{order}": partial(rouge_n, order) for order in range(1, 6)},
    "rouge_l": rouge_l,
}


def _words(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


def _grams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[place:] for place in range(order)), strict=False))


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, row by row of the usual table."""
    before = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for place, seen in enumerate(other):
            row.append(before[place] + 1 if word == seen else max(before[place + 1], row[place]))
        before = row
    return before[-1]
