"""The preparer process: `python -m trainer.data --base SOURCE`. Pays its imports and the tokenizer once, then serves.

Owns the loop only: a command that fails is answered and the next one is read. Ends when the agent closes the pipe.
"""

import argparse
import logging
import sys
import traceback

from pydantic import ValidationError

from trainer.pipes import AgentPipe
from trainer.protocol import Prepare, PrepareFailed, PreparerReady

log = logging.getLogger("trainer.data")


def main() -> None:
    parser = argparse.ArgumentParser(description="Turns training files into token ids and loss weights.")
    parser.add_argument("--base", required=True, help="folder or hub id of the base model")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    serve(AgentPipe(), options.base)


def serve(pipe: AgentPipe, base: str) -> None:
    # Tokenizers need no torch. Left to themselves transformers and datasets import it where it is installed, which
    # costs this process eight seconds and 300 MB; a None here is how Python is told that a module is not there.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    import datasets
    from transformers import AutoTokenizer

    from trainer.data.prepare import InvalidFile, Preparer, as_failure
    from trainer.data.render import template_hash

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(base)
    preparer = Preparer(tokenizer)
    pipe.send(PreparerReady(chat_template_sha256=template_hash(tokenizer)))
    for line in pipe.lines():
        try:
            command = Prepare.model_validate_json(line)
        except ValidationError as error:
            log.error("unreadable command: %s", error.errors(include_input=False, include_url=False))
            continue
        try:
            pipe.send(preparer.prepare(command))
        except Exception as error:
            # Where it happened and no more: the words of an exception may be the tenant's.
            where = "" if isinstance(error, InvalidFile) else "".join(traceback.format_tb(error.__traceback__))
            log.warning("job %s: %s file refused: %s\n%s", command.job_id, command.role, type(error).__name__, where)
            pipe.send(PrepareFailed(job_id=command.job_id, role=command.role, failure=as_failure(error, command)))


if __name__ == "__main__":
    main()
