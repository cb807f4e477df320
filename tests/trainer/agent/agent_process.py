"""The agent as a process of its own, with the children that a test names: `python agent_process.py CONFIG.json`."""

import json
import sys
from pathlib import Path

from trainer.__main__ import log_to_stdout, serve
from trainer.commands import ChildCommands
from trainer.settings import TrainerSettings

if __name__ == "__main__":
    config = json.loads(Path(sys.argv[1]).read_text())
    log_to_stdout()
    commands = ChildCommands(preparer=tuple(config["preparer"]), engine=tuple(config["engine"]))
    sys.exit(serve(TrainerSettings.model_validate(config["settings"]), commands))
