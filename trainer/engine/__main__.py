"""The engine process: `python -m trainer.engine --base SOURCE --fingerprint F`. Owns arguments and start-up only."""

import argparse
import logging
import sys
import time

from trainer.pipes import AgentPipe
from trainer.protocol import EngineReady


def main() -> None:
    options = _arguments().parse_args()
    pipe = AgentPipe()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    started = time.monotonic()
    # Seconds of imports: after the pipe is safe from what libraries print, and part of the load time that is reported.
    from trainer.engine.base import load
    from trainer.engine.serve import Server

    engine, account = load(options.base, options.device, options.threads, options.token_budget, options.memory_bytes)
    pipe.send(EngineReady(base_fingerprint=options.fingerprint, load_seconds=time.monotonic() - started))
    Server(pipe, engine, account, options.fingerprint, options.checkpoint_seconds).run()


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Trains many LoRA adapters over one frozen base model.")
    parser.add_argument("--base", required=True, help="folder or hub id of the base model")
    parser.add_argument("--fingerprint", required=True, help="of the base, as jobs name it")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 chooses by the base's size")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:n]")
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0)
    parser.add_argument("--token-budget", type=int, default=0, help="padded tokens a pass; 0 chooses")
    parser.add_argument("--memory-bytes", type=int, default=0, help="for jobs, beside the base; 0 finds out")
    return parser


if __name__ == "__main__":
    main()
