"""What vLLM's loggers would say about a request is said without the request's own words."""

import logging
import logging.config
from collections.abc import Iterator

import pytest

from inference import discretion

SAID = "said-by-a-tenant"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    before = logging.getLogRecordFactory()
    discretion.install()
    discretion.install()
    yield caplog
    logging.setLogRecordFactory(before)


def test_values_of_a_request_are_left_out(log: pytest.LogCaptureFixture) -> None:
    vllm = logging.getLogger("vllm.renderers.hf")
    vllm.warning("Chat template rejected the request: %s", ValueError(SAID))
    vllm.warning("Tool call %r has %d chars of %s in %s", SAID, 7, str, "chatcmpl-req_7KxQ")
    vllm.warning("%(key)s", {"key": SAID})
    assert SAID not in log.text
    assert "Chat template rejected the request: …" in log.text
    assert "Tool call '…' has 7 chars of <class 'str'> in chatcmpl-req_7KxQ" in log.text


def test_a_message_put_together_is_left_out_whole(log: pytest.LogCaptureFixture) -> None:
    logging.getLogger("vllm.tool_parsers.xlam_tool_parser").error(f"Error extracting tool calls: {SAID}")
    logging.getLogger("vllm.tool_parsers.xlam_tool_parser").error("No tool call was found")
    assert SAID not in log.text
    assert "test_discretion.py" in log.text
    assert "No tool call was found" in log.text


def test_an_exception_is_told_by_its_kind_and_its_place(log: pytest.LogCaptureFixture) -> None:
    try:
        int(SAID)
    except ValueError:
        logging.getLogger("vllm.entrypoints.openai.chat_completion.serving").exception("Error in a stream")
    assert SAID not in log.text
    assert "Error in a stream" in log.text
    assert "test_an_exception_is_told_by_its_kind_and_its_place" in log.text
    assert log.text.rstrip().endswith("ValueError")


def test_handlers_that_are_configured_later_are_told_no_more(
    log: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = {"class": "logging.StreamHandler", "stream": "ext://sys.stderr"}
    loggers = {"vllm": {"handlers": ["late"], "level": "WARNING", "propagate": False}}
    logging.config.dictConfig(
        {"version": 1, "disable_existing_loggers": False, "handlers": {"late": handler}, "loggers": loggers}
    )
    try:
        logging.getLogger("vllm.renderers.hf").warning("Rejected: %s", SAID)
    finally:
        vllm = logging.getLogger("vllm")
        vllm.handlers, vllm.propagate = [], True
    assert capsys.readouterr().err == "Rejected: …\n"


@pytest.mark.parametrize("name", ["vllm.v1.engine.core", "weft.plugin"])
def test_what_stops_an_engine_is_told_in_full(log: pytest.LogCaptureFixture, name: str) -> None:
    logging.getLogger(name).error("No memory for %s", "the cache")
    assert "No memory for the cache" in log.text
