"""The command line `weft`: what people do with the client, from a terminal or a script.

This package is imported before the first word is shown, so nothing heavy is imported at the top of its modules:
neither `openai` nor `rich` nor pydantic, which the commands import when they run.
"""

import sys

MISSING = 'weft: the command line needs click and rich: pip install "weft[cli]"\n'


def main() -> int:
    """Runs the command that the process was started with; the exit status."""
    try:
        from weft.cli.app import run
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.stderr.write(MISSING)
        return 1
    except KeyboardInterrupt:
        return 130
    return run(sys.argv[1:])
