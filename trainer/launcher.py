"""Turns itself into a child of the agent that cannot outlive it: `python launcher.py AGENT_PID OOM_SCORE COMMAND...`.

Runs between fork and the child's own program, as a program of its own because a process with threads may not run
Python code there. Leaves the process group to whoever starts it. Imports the standard library only, and little of it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
SECRET = "WEFT_TRAINER_WORKER_TOKEN"
"""Children read tenants' files; they have no use for the token."""


def main() -> None:
    agent, oom_score, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            with open("/proc/self/oom_score_adj", "w") as score:
                score.write(oom_score)
        except OSError as error:
            sys.stderr.write(f"trainer: cannot mark the child as first to go when memory runs out: {error}\n")
    if os.getppid() != agent:  # It died before the signal was asked for.
        sys.exit(1)
    environment = {name: value for name, value in os.environ.items() if name != SECRET}  # noqa: TID251 a launcher
    os.execvpe(command[0], command, environment)


if __name__ == "__main__":
    main()
