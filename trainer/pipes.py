"""The child's end of the pipes to the agent: JSON lines in on stdin, JSON lines out on what was stdout.

Owns the file descriptors. What the lines mean is `trainer.protocol`; who answers them is each child's own loop.
"""

import os
import sys
from collections.abc import Iterator

from trainer.protocol import Line


class AgentPipe:
    """Takes stdout for the protocol alone; anything a library prints from here on lands on stderr."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)
        sys.stdout = sys.stderr

    def send(self, line: Line) -> None:
        """Writes one message whole. Raises BrokenPipeError when the agent is gone."""
        data = memoryview(line.model_dump_json().encode() + b"\n")
        while data:
            data = data[os.write(self._out, data) :]

    def lines(self) -> Iterator[bytes]:
        """Messages until the agent closes the pipe."""
        yield from sys.stdin.buffer
