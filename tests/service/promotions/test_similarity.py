"""The metrics of similarity, against what their papers and the libraries of the field give for the same texts."""

import time

import pytest

from service.jobs.graders import METRICS as OFFERED
from service.promotions.similarity import COMPARED, METRICS, similarity

GUIDE = "It is a guide to action which ensures that the military always obeys the commands of the party"
TROOPS = "It is to insure the troops forever hearing the activity guidebook that party direct"
PARTY = "It is a guide to action that ensures that the military will forever heed Party commands"


def test_what_a_grader_may_ask_for_is_what_there_is() -> None:
    assert tuple(METRICS) == OFFERED


@pytest.mark.parametrize(
    ("metric", "text", "reference", "score"),
    [
        # Lin 2004, ROUGE, section 3.1: the sentences S2 and S3 of its example have the LCS 3 and 2 with S1, of 4 words.
        ("rouge_l", "police kill the gunman", "police killed the gunman", 3 / 4),
        ("rouge_l", "the gunman kill police", "police killed the gunman", 2 / 4),
        # As rouge-score 0.1.2 has them.
        ("rouge_1", "The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog", 0.7058824),
        ("rouge_2", "The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog", 4 / 15),
        ("rouge_l", "The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog", 0.5882353),
        # Wu et al. 2016 by the examples of NLTK's `sentence_gleu`.
        ("gleu", "the the the the the the the", "the cat is on the mat", 0.0909091),
        ("gleu", GUIDE, PARTY, 0.4393939),
        ("gleu", TROOPS, PARTY, 0.1206897),
        # As sacreBLEU 2.6's `sentence_bleu` has them; the first is of its documentation.
        ("bleu", "The dog bit the man.", "The dog had bit the man.", 0.5115078),
        ("bleu", GUIDE, PARTY, 0.4118038),
        ("bleu", TROOPS, PARTY, 0.0647980),
        ("bleu", "the the the the the the the", "the cat is on the mat", 0.0780985),
    ],
)
def test_a_metric_gives_what_is_published_of_it(metric: str, text: str, reference: str, score: float) -> None:
    assert similarity(metric, text, reference) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("metric", OFFERED)
@pytest.mark.parametrize("text", ["4", "A longer text, of several words and marks.", "?!", "東京は日本の首都です", ""])
def test_a_text_is_like_itself_and_not_like_another(metric: str, text: str) -> None:
    assert similarity(metric, text, text) == pytest.approx(1.0)
    assert similarity(metric, text, "x y z") < 0.1


def test_scripts_without_spaces_are_taken_by_characters() -> None:
    assert similarity("rouge_1", "東京は首都", "東京の首都") == pytest.approx(4 / 5)


@pytest.mark.parametrize("metric", OFFERED)
def test_texts_of_any_length_are_compared_in_a_moment(metric: str) -> None:
    began = time.process_time()
    similarity(metric, "a b " * 10**6, "b a " * 10**6)
    assert time.process_time() - began < 5


def test_only_the_beginning_of_long_texts_is_looked_at() -> None:
    assert similarity("fuzzy_match", "ab" * 10**6, "ba" * 10**6) == pytest.approx((COMPARED - 1) / COMPARED)
