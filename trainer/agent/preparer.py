"""The preparer as the runs see it: one file at a time, an answer or an error for each.

Owns the queue before it. A file whose preparation is no longer wanted is still waited for, since nothing can tell the
child to leave off, and its answer must not be taken for the next one's.
"""

import asyncio
from collections.abc import Sequence

from service.contracts.worker import JobFailure
from trainer.children import ChildGone, Supervisor
from trainer.protocol import Prepare, Prepared, PrepareFailed, PreparerReady, from_preparer

SLOWEST_BYTES_PER_SECOND = 100_000


class PreparerDied(Exception):
    """It ended over this file."""


class PreparerHopeless(Exception):
    """The preparer does not come up on this machine."""


class FileRejected(Exception):
    def __init__(self, failure: JobFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class PreparerHost(Supervisor[PreparerReady | Prepared | PrepareFailed]):
    def __init__(self, argv: Sequence[str], ready_seconds: float, stall_seconds: float) -> None:
        super().__init__("preparer", argv, from_preparer, ready_seconds)
        self.chat_template_sha256: str | None = None
        self._stall_seconds = stall_seconds
        self._limit: float | None = None
        self._turn = asyncio.Lock()
        self._settled = asyncio.Event()
        self._answer: asyncio.Future[Prepared | PrepareFailed] | None = None

    async def wait_ready(self) -> None:
        """Raises PreparerHopeless."""
        while not self.ready:
            if self.hopeless:
                raise PreparerHopeless("The file preparer does not start on this machine; its log says why.")
            await self._settled.wait()

    async def prepare(self, command: Prepare, size: int) -> Prepared:
        """Raises FileRejected, PreparerDied or PreparerHopeless. May be cancelled; the child finishes all the same."""
        exchange = asyncio.create_task(self._exchange(command, size))
        exchange.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(exchange)

    async def _exchange(self, command: Prepare, size: int) -> Prepared:
        async with self._turn:
            await self.wait_ready()
            self._answer = asyncio.get_running_loop().create_future()
            self._limit = self._stall_seconds + size / SLOWEST_BYTES_PER_SECOND
            try:
                await self.send(command)
                answer = await self._answer
            except ChildGone as error:
                raise PreparerDied(str(error)) from error
            finally:
                self._answer = self._limit = None
        if isinstance(answer, PrepareFailed):
            raise FileRejected(answer.failure)
        return answer

    def heard(self, line: PreparerReady | Prepared | PrepareFailed) -> None:
        if isinstance(line, PreparerReady):
            self.chat_template_sha256 = line.chat_template_sha256
            self.came_up()
            self._announce()
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(line)

    def died(self, reason: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(PreparerDied(reason))
        self._announce()

    def patience(self) -> float | None:
        return self._limit

    def _announce(self) -> None:
        self._settled.set()
        self._settled = asyncio.Event()
