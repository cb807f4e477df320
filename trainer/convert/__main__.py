"""The converter process: `python -m trainer.convert --base SOURCE`. One command in, one answer out, and the end."""

import argparse
import os
import resource
from pathlib import Path

from service.contracts.worker import JobFailure
from trainer.pipes import AgentPipe
from trainer.protocol import ConvertFailed, Imported, Merge, Merged, to_converter

NICENESS = 19
THREADS = 2


def main() -> None:
    options = _arguments().parse_args()
    pipe = AgentPipe()
    _keep_small(options.memory_bytes)
    line = next(pipe.lines(), None)
    if line is not None:
        pipe.send(_done(options.base, to_converter.validate_json(line)))


def _done(base: str, command: object) -> Imported | Merged | ConvertFailed:
    # Seconds of imports: after the pipe is safe from what libraries print, and within the bounds.
    import torch

    from trainer.convert.refusal import Refused

    torch.set_num_threads(THREADS)
    try:
        if isinstance(command, Merge):
            from trainer.convert.merging import merge

            merge(base, Path(command.adapter_dir), Path(command.out_dir))
            return Merged()
        from trainer.convert.importing import import_adapter

        return import_adapter(base, command)  # pyright: ignore[reportArgumentType] what is not the one is the other
    except Refused as error:
        return ConvertFailed(failure=JobFailure(code=error.code, message=str(error)[:2000]))


def _keep_small(memory_bytes: int) -> None:
    """Jobs go first, on the processors and in memory. A file that asks for too much ends this process and no other."""
    os.nice(NICENESS)
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    limit = memory_bytes or half
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Imports an adapter, or merges one into its base.")
    parser.add_argument("--base", required=True, help="folder or hub id of the base model")
    parser.add_argument("--memory-bytes", type=int, default=0, help="0 takes half of the machine's")
    return parser


if __name__ == "__main__":
    main()
