"""Becomes another program that cannot outlive its parent: `guard.py PARENT SIGNAL USER PROGRAM ARGUMENT…`.

Run as a script, with no import of the project, so that it costs milliseconds. The kernel sends SIGNAL to the program
when PARENT dies, even by `kill -9`. A change of user clears that wish, so it is made here, after the change.
"""

import ctypes
import os
import pwd
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, death_signal: int, user: str, argv: list[str]) -> None:
    if user:
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    # A shell starts background jobs with SIGINT ignored, and that would be inherited by servers that stop on it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        sys.exit("the parent died before this process began")
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
