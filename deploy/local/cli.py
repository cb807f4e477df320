"""`weftd`, the operator's command for an embedded stack on one machine: parses, calls, turns errors into one line."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.local.folder import DataFolder, FolderInUse, StackError
from deploy.local.tiny_base import tasks

FAILED, IN_USE, NOT_RUNNING = 1, 2, 3
MOST_REPLICAS = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed, 2 wrong usage or folder in use, 3 not running."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except FolderInUse as error:
        print(f"weftd: {error}", file=sys.stderr)
        return IN_USE
    except (StackError, OSError) as error:
        print(f"weftd: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 128 + 2


def _up(options: argparse.Namespace) -> int:
    # Only this command needs the parts' libraries; the others should answer at once.
    from deploy.local.display import Display
    from deploy.local.up import Wanted, up

    asyncio.run(up(_data(options), Wanted(options.port, options.base, options.replicas), Display()))
    return 0


def _down(options: argparse.Namespace) -> int:
    from deploy.local.running import down

    data = _data(options)
    return 0 if down(data) else _say_nothing_runs(data, 0)


def _status(options: argparse.Namespace) -> int:
    from deploy.local.running import show

    data = _data(options)
    ready = show(data)
    if ready is None:
        return _say_nothing_runs(data, NOT_RUNNING)
    return 0 if ready else FAILED


def _key_create(options: argparse.Namespace) -> int:
    from deploy.local.admin import Admin

    print(Admin.of(_data(options)).create_key(options.project))
    return 0


def _examples(options: argparse.Namespace) -> int:
    for line in tasks.examples(options.task, options.count, options.seed):
        print(json.dumps(line, ensure_ascii=False))
    return 0


def _data(options: argparse.Namespace) -> DataFolder:
    # Resolved here: children run in other folders.
    return DataFolder(options.data.expanduser().resolve())


def _say_nothing_runs(data: DataFolder, status: int) -> int:
    print(f"nothing runs on {data.root}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="weftd",
        description="Runs a whole Weft on this machine: database, object store, service, trainer and vLLM.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = _command(commands, "up", _up, "run the stack in the foreground; Ctrl-C stops it")
    up.add_argument("--port", type=_port, default=8000, help="where the API listens on 127.0.0.1 (default 8000)")
    up.add_argument(
        "--base", metavar="MODEL", help="base model: a folder or a hub id (default: a tiny one, for trying out)"
    )
    up.add_argument(
        "--replicas", type=_replicas, default=1, metavar="N", help="replicas of vLLM, from 1 to 16 (default 1)"
    )
    _command(commands, "down", _down, "stop the stack that runs on a data folder")
    _command(
        commands, "status", _status, "show what runs; exit status 0 when ready, 1 when not yet, 3 when not running"
    )
    key = commands.add_parser("key", help="keys of projects").add_subparsers(required=True, metavar="COMMAND")
    create = _command(
        key, "create", _key_create, "make a key of a project and print it; the project is made if missing"
    )
    create.add_argument("--project", required=True, metavar="NAME", help="the project's name")
    example = commands.add_parser(
        "examples",
        help="print training lines of a made-up task, for trying out",
        description="Prints chat lines of a task that the tiny base can learn in seconds; another seed, other lines.",
    )
    example.add_argument("task", choices=sorted(tasks.TASKS))
    example.add_argument("--count", type=int, default=200, metavar="N", help="how many lines (default 200)")
    example.add_argument("--seed", type=int, default=0, metavar="N", help="which ones (default 0)")
    example.set_defaults(run=_examples)
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: object, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="the data folder; made by `up` if missing"
    )
    parser.set_defaults(run=run)
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 1 to 65535")
    return port


def _replicas(text: str) -> int:
    replicas = int(text)
    if not 1 <= replicas <= MOST_REPLICAS:
        raise argparse.ArgumentTypeError(f"from 1 to {MOST_REPLICAS} replicas")
    return replicas


if __name__ == "__main__":
    sys.exit(main())
