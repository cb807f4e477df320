"""The converter as its parent sees it: one command, one answer, a limit of time, and the process gone in any case."""

import asyncio

from service.contracts.worker import JobFailure
from trainer.agent.endings import JobError
from trainer.children import Child, ChildGone, ProtocolBroken
from trainer.protocol import ConvertFailed, Import, Imported, Merge, Merged, from_converter

OOM_SCORE = 1000
"""When memory runs out it goes before any engine."""


class Broken(Exception):
    """It did not work here and now; another try, perhaps on another worker, may."""


async def convert(argv: tuple[str, ...], command: Import | Merge, seconds: float) -> Imported | Merged:
    """Raises JobError for what cannot be done anywhere, Broken for what ended the child."""
    child = await Child.start(argv, from_converter, OOM_SCORE)
    answer: Imported | Merged | ConvertFailed | None = None
    try:
        async with asyncio.timeout(seconds):
            await child.send(command)
            async for answer in child.lines():  # noqa: B007 the first one is the only one
                break
    except TimeoutError as error:
        message = f"It took longer than {seconds:g} s, which is as long as this service works on one adapter."
        raise JobError(JobFailure(code="too_slow", message=message)) from error
    except (ChildGone, ProtocolBroken) as error:
        raise Broken(f"the converter broke off: {error}") from error
    finally:
        child.kill()
        code = await child.end(0)
    if answer is None:
        raise Broken(f"the converter ended with code {code} and no answer")
    if isinstance(answer, ConvertFailed):
        raise JobError(answer.failure)
    return answer
