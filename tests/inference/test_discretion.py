"""What vLLM's loggers would say about a request is said without the request's own words."""

import logging
from collections.abc import Iterator

import pytest

from inference.discretion import Discretion

SAID = "said-by-a-tenant"


@pytest.fixture
def handler(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    discretion = Discretion()
    caplog.handler.addFilter(discretion)
    yield caplog
    caplog.handler.removeFilter(discretion)


def test_values_of_a_request_are_left_out(handler: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("vllm.renderers.hf")
    log.warning("Chat template rejected the request: %s", ValueError(SAID))
    log.warning("Tool call %r has %d chars of %s in %s", SAID, 7, str, "chatcmpl-req_7KxQ")
    log.warning("%(key)s", {"key": SAID})
    assert SAID not in handler.text
    assert "Chat template rejected the request: …" in handler.text
    assert "Tool call '…' has 7 chars of <class 'str'> in chatcmpl-req_7KxQ" in handler.text


def test_an_exception_is_told_by_its_kind_and_its_place(handler: pytest.LogCaptureFixture) -> None:
    try:
        int(SAID)
    except ValueError:
        logging.getLogger("vllm.entrypoints.openai.chat_completion.serving").exception("Error in a stream")
    assert SAID not in handler.text
    assert "Error in a stream" in handler.text
    assert "test_an_exception_is_told_by_its_kind_and_its_place" in handler.text
    assert handler.text.rstrip().endswith("ValueError")


@pytest.mark.parametrize("name", ["vllm.v1.engine.core", "weft.plugin"])
def test_what_stops_an_engine_is_told_in_full(handler: pytest.LogCaptureFixture, name: str) -> None:
    logging.getLogger(name).error("No memory for %s", "the cache")
    assert "No memory for the cache" in handler.text
