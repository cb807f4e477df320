"""A terminal for tests: a pseudoterminal with a program in it, and a screen that shows what one would see there."""

import errno
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

import weft

SOURCES = Path(weft.__file__).parents[1]
WEFT = (sys.executable, "-m", "weft.cli")
SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b[=>]|\x1b\][^\x07]*\x07")


class Screen:
    """Lines of text under the control sequences that programs here use: colours, moves, erasing."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = [[]]
        self.styles: set[str] = set()
        self._x = self._y = 0
        self._rest = ""

    def feed(self, text: str) -> None:
        text, self._rest = self._rest + text, ""
        place = 0
        while place < len(text):
            if text[place] != "\x1b":
                self._put(text[place])
                place += 1
                continue
            found = SEQUENCE.match(text, place)
            if found is None:
                self._rest = text[place:]
                return
            self._obey(found[1] or "", found[2] or "")
            place = found.end()

    @property
    def text(self) -> str:
        return "\n".join("".join(line).rstrip() for line in self.lines).rstrip("\n")

    def _put(self, character: str) -> None:
        if character == "\n":
            self._y += 1
        elif character == "\r":
            self._x = 0
        elif character == "\b":
            self._x = max(self._x - 1, 0)
        elif character >= " ":
            line = self._line()
            line.extend(" " * (self._x + 1 - len(line)))
            line[self._x] = character
            self._x += 1

    def _line(self) -> list[str]:
        while len(self.lines) <= self._y:
            self.lines.append([])
        return self.lines[self._y]

    def _obey(self, numbers: str, what: str) -> None:
        amount = int(numbers) if numbers.isdigit() else 1
        if what == "A":
            self._y = max(self._y - amount, 0)
        elif what == "B":
            self._y += amount
        elif what == "C":
            self._x += amount
        elif what == "K":
            line = self._line()
            del line[0 if numbers == "2" else self._x :]
        elif what == "J":
            del self._line()[self._x :]
            del self.lines[self._y + 1 :]
        elif what == "m":
            self.styles.add(numbers)


class Terminal:
    """A program in a pseudoterminal. `screen` shows what it wrote, standard error included."""

    def __init__(self, argv: tuple[str, ...], env: dict[str, str], folder: Path, width: int, height: int) -> None:
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self._ours = ours
        self.screen = Screen()
        self._process = subprocess.Popen(
            argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=folder, preexec_fn=_own_terminal
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C: the terminal itself makes the signal of it."""
        self.type("\x03")

    def leave(self, seconds: float = 60) -> int:
        """Ctrl-C until the program ends. Returns its exit status.

        One is not always enough: between the prompt and the wait behind it, Python's readline notices no signal.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.interrupt()
            while self._read(time.monotonic() + 0.5):
                pass
            if self._process.poll() is not None:
                return self._process.returncode
        pytest.fail(f"it did not end:\n{self.screen.text}")

    def until(self, shown: str, seconds: float = 60) -> None:
        """Returns once the text is on the screen, on which nobody sees blanks at the end of a line."""
        shown = shown.rstrip(" ")
        deadline = time.monotonic() + seconds
        while shown not in self.screen.text:
            if not self._read(deadline) and shown not in self.screen.text:
                pytest.fail(f"{shown!r} was not shown:\n{self.screen.text}")

    def end(self, seconds: float = 60) -> int:
        """The exit status, with everything read."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        return self._process.wait(max(deadline - time.monotonic(), 1))

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        os.close(self._ours)

    def _read(self, deadline: float) -> bool:
        """False at the program's end and when the time is up."""
        if not select.select([self._ours], [], [], max(deadline - time.monotonic(), 0))[0]:
            return False
        try:
            piece = os.read(self._ours, 65536)
        except OSError as error:
            # How Linux tells that nobody has the other side open any more.
            if error.errno != errno.EIO:
                raise
            return False
        self.screen.feed(piece.decode(errors="replace"))
        return bool(piece)


def _own_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def environment(**variables: str) -> dict[str, str]:
    """A user's, in which only our own variables matter."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "PYTHONPATH": str(SOURCES), "LANG": "C.UTF-8", "TERM": "xterm-256color", "TZ": "UTC", **variables}
