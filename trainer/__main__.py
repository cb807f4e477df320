"""`python -m trainer`: the agent, from settings in the environment to an exit code.

Owns the process: work folder lock, log lines, signals. SIGTERM or SIGINT hands everything back, a second one ends it
at once.
"""

import asyncio
import logging
import signal
import sys
from pathlib import Path

from pydantic import ValidationError

from trainer.agent.engine import WrongBase
from trainer.agent.loop import Agent
from trainer.agent.workdir import WorkDirTaken, claimed
from trainer.commands import ChildCommands, child_commands
from trainer.control import Refused
from trainer.settings import TrainerSettings

log = logging.getLogger("trainer")


def main() -> int:
    log_to_stdout()
    try:
        settings = TrainerSettings()  # pyright: ignore[reportCallIssue] filled from the environment
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            log.error("WEFT_TRAINER_%s: %s", "_".join(map(str, problem["loc"])).upper(), problem["msg"])
        return 2
    return serve(settings, child_commands(settings))


def log_to_stdout() -> None:
    """One line per change of state. Nothing that is logged holds a word of the data."""
    logging.basicConfig(level=logging.WARNING, format="trainer: %(message)s", stream=sys.stdout)
    log.setLevel(logging.INFO)


def serve(settings: TrainerSettings, commands: ChildCommands) -> int:
    """Runs the agent to its end. 0 after an orderly stop, 1 for what an operator must mend."""
    try:
        with claimed(settings.work_dir) as jobs:
            asyncio.run(_run(settings, commands, jobs))
    except (WorkDirTaken, WrongBase, Refused) as error:
        log.error("%s", error)
        return 1
    return 0


async def _run(settings: TrainerSettings, commands: ChildCommands, jobs: Path) -> None:
    agent = Agent(settings, commands, jobs)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)  # The next one ends this process, and the kernel its children.
        agent.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await agent.run()


if __name__ == "__main__":
    sys.exit(main())
