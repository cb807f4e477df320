"""The SDK's clients: where they look for an address and a key, and that they stay `openai` clients."""

import openai
import pytest

from weft import AsyncWeft, Weft

URL = "http://127.0.0.1:1/v1/"


@pytest.mark.parametrize("client", [Weft, AsyncWeft])
def test_reads_its_own_variables_and_not_those_of_openai(client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:2/v1/")
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("WEFT_BASE_URL", URL)
    monkeypatch.setenv("WEFT_API_KEY", "sk-weft-mine")
    made = client()
    assert str(made.base_url) == URL
    assert made.api_key == "sk-weft-mine"


@pytest.mark.parametrize("client", [Weft, AsyncWeft])
@pytest.mark.parametrize("missing", ["WEFT_BASE_URL", "WEFT_API_KEY"])
def test_says_what_is_missing(client, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_BASE_URL", URL)
    monkeypatch.setenv("WEFT_API_KEY", "sk-weft-mine")
    monkeypatch.delenv(missing)
    with pytest.raises(openai.OpenAIError, match=missing):
        client()


def test_arguments_win_and_options_survive_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_API_KEY", "sk-weft-environment")
    copy = Weft(api_key="sk-weft-argument", base_url=URL, max_retries=7).with_options(timeout=3)
    assert isinstance(copy, Weft)
    assert (copy.api_key, str(copy.base_url), copy.max_retries, copy.timeout) == ("sk-weft-argument", URL, 7, 3)
