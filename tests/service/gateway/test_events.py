"""The event filter over vLLM's captured bytes, cut anywhere: same bytes, same counts, no tenant's text touched."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.gateway import fields
from service.gateway.events import EventFilter, StreamBroken, Usage, model_member, usage_of_answer
from service.gateway.request import parse
from service.gateway.resolve import Target
from tests.service.gateway.captured import CHAT_COUNTED, CHAT_PLAIN, CHAT_WHOLE, FAILED_EVENT, TEXT_COUNTED
from tests.service.gateway.upstream import named

ADAPTER = Target("ft:weft-tiny:acme:demo:AbCdEf12", "weft-tiny", "ab" * 32)
CHAT = b"".join(named(event, ADAPTER.model) for event in CHAT_COUNTED)
SHOWN = b"".join(named(event, ADAPTER.name) for event in CHAT_PLAIN[:4] + CHAT_PLAIN[5:])


def filter_of(**asked: object) -> EventFilter:
    body = {"model": ADAPTER.name, "stream": True, **asked}
    allowed = fields.COMPLETION if "prompt" in asked else fields.CHAT
    return EventFilter(parse(json.dumps(body).encode(), allowed), ADAPTER)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(st.lists(st.integers(0, 10_000), max_size=12))
def test_where_the_network_cuts_makes_no_difference(cuts: list[int]) -> None:
    events = filter_of()
    assert b"".join(events.feed(piece) for piece in pieces(CHAT, cuts)) == SHOWN
    assert (events.done, events.complete, events.usage) == (True, True, Usage(6, 3))


@given(st.integers(1, len(CHAT) - 1))
def test_a_stream_that_stops_anywhere_shows_whole_events_and_counts_those(length: int) -> None:
    events = filter_of()
    shown = events.feed(CHAT[:length])
    assert SHOWN.startswith(shown)
    assert shown.endswith(b"\n\n") or not shown
    whole = CHAT[:length].count(b"\n\n")
    assert events.usage == (Usage(6, max(0, min(whole, 4) - 1)) if whole else Usage(0, 0))
    assert events.done == (length == len(CHAT))


@given(st.text(), st.text())
def test_text_that_looks_like_the_protocol_passes_unchanged(before: str, after: str) -> None:
    tricks = [
        f'"model":"{ADAPTER.model}"',
        ',"usage":{"prompt_tokens":0}',
        '"choices":[]',
        'data: {"error"',
        "data: [DONE]\n\n",
    ]
    events = filter_of()
    for trick in tricks:
        content = json.dumps(before + trick + after, ensure_ascii=False).encode(errors="surrogatepass")
        event = CHAT_COUNTED[1].replace(b'"He said "', content)
        plain = CHAT_PLAIN[1].replace(b'"He said "', content)
        assert events.feed(named(event, ADAPTER.model)) == named(plain, ADAPTER.name)
    assert events.failure is None
    assert not events.done


def test_many_sequences_are_counted_each_and_their_prompts_once() -> None:
    events = filter_of(prompt=["Hi", "Hello"])
    for event in TEXT_COUNTED[:3]:
        events.feed(event)
    assert events.usage == Usage(2 + 5, 2 + 1)
    events.feed(b"".join(TEXT_COUNTED[3:]))
    assert events.usage == Usage(7, 4)
    choices = filter_of(n=2)
    for index in (b"0", b"1"):
        choices.feed(CHAT_COUNTED[2].replace(b'"index":0', b'"index":' + index))
    assert choices.usage == Usage(6, 4)


def test_comments_pass_and_a_failure_ends_what_is_shown() -> None:
    events = filter_of()
    assert events.feed(b": keep-alive\n\n") == b": keep-alive\n\n"
    shown = events.feed(CHAT_COUNTED[1] + FAILED_EVENT + b"data: [DONE]\n\n")
    assert shown == CHAT_PLAIN[1]
    assert events.failure is not None
    assert json.loads(events.failure)["error"]["code"] == 500


def test_an_endless_event_and_an_answer_without_usage_are_broken() -> None:
    events = filter_of()
    with pytest.raises(StreamBroken):
        any(events.feed(b"x" * (1 << 20)) for _ in range(40))
    assert usage_of_answer(CHAT_WHOLE) == Usage(6, 3)
    for body in (b"", b"{}", b"[]", b'{"usage":null}', b'{"usage":{"prompt_tokens":"many"}}'):
        with pytest.raises(StreamBroken):
            usage_of_answer(body)


def test_the_model_member_is_printed_as_vllm_prints_it() -> None:
    assert model_member("MODEL") in CHAT_WHOLE
    assert all(model_member("MODEL") in event for event in CHAT_COUNTED[:-1])
