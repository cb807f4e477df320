"""The grammar of references to registered adapters."""

import pytest

from service.adapters.aliases import Reference, is_alias, is_name, parse


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("support-bot", Reference("support-bot", "default", None)),
        ("support-bot@prod", Reference("support-bot", "prod", None)),
        ("support-bot@v7", Reference("support-bot", None, 7)),
        ("0.a_b-c@x-1_y", Reference("0.a_b-c", "x-1_y", None)),
        ("a@v7b", Reference("a", "v7b", None)),
        ("ftse-bot@v1", Reference("ftse-bot", None, 1)),
        ("ft", Reference("ft", "default", None)),
    ],
)
def test_a_reference_is_an_alias_or_a_version(text: str, meant: Reference) -> None:
    assert parse(text) == meant


@pytest.mark.parametrize(
    "text",
    [
        *("", "@", "a@", "@prod", "A", "-a", "a b", "a/b", "ä", "a\n", "a@prod\n", "a" * 65, "a@" + "b" * 33),
        *("a@prod@v1", "a@v0", "a@v01", "a@v1234567890", "a@Prod", "a@7", "ft:weft-tiny:org::12345678", "ftjob-a"),
    ],
)
def test_nothing_else_is_one(text: str) -> None:
    assert parse(text) is None


def test_names_and_aliases_cannot_be_taken_for_anything_else() -> None:
    assert is_name("a" * 64)
    assert is_name("ft-bot")
    assert not is_name("ft:bot")
    assert not is_name("ftjob-a1b2c3")
    assert not is_name("ftckpt_a1b2c3")
    assert is_alias("v")
    assert not is_alias("v12345678901")
