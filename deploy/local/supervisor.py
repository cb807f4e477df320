"""Keeps the parts of one stack: adds them, waits for them, watches them, stops them in order.

What the parts are and how one is seen to be ready is `stack`'s; in which order they start is `up`'s; how one process is
kept and ended is `children`'s.
"""

import asyncio
import contextlib

from deploy.local import folder, processes
from deploy.local.children import Child, Part
from deploy.local.display import Display
from deploy.local.folder import DataFolder, StackError
from deploy.local.processes import Records

START_SECONDS = 600.0
HOPELESS_FAILURES = 3
"""A part that fails so often before it was ever ready will not get better by itself."""
POLL_SECONDS = 0.1
LOOK_SECONDS = 3.0
STOP_ORDER = (("trainer", "replica"), ("service",), ("objects", "postgres"))
"""Those that use others end first, so that they can still say goodbye: a lease is released, a replica signs off."""


class Supervisor:
    """The parts of one stack from first start to last stop."""

    def __init__(self, data: DataFolder, display: Display) -> None:
        self._data = data
        self._display = display
        self._children: dict[str, Child] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ready = False

    def add(self, part: Part) -> None:
        """Starts a part and keeps it running until `stop`."""
        self._display.begin(part.name)
        child = self._children[part.name] = Child(
            part, self._data.log(part.name), self._display.line, self.save_records
        )
        self._tasks[part.name] = asyncio.create_task(child.keep())

    async def until_ready(self, name: str) -> None:
        """Waits for a part. Raises StackError with the end of its log where it keeps dying or takes too long."""
        try:
            await self._wait_for(self._children[name])
        except StackError:
            self._display.failed(name)
            raise
        self._display.done(name)

    async def _wait_for(self, child: Child) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                while child.pid is None or not await child.part.ready():
                    failures = child.deaths + child.part.setbacks()
                    if failures >= HOPELESS_FAILURES:
                        raise StackError(self._obituary(child, f"failed {failures} times before it was ready"))
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise StackError(self._obituary(child, f"was not ready within {START_SECONDS:g} s")) from None

    async def watch(self) -> None:
        """Keeps the records true, the logs bounded and the process table clean, for as long as the stack runs."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.save_records()
            self._data.trim_logs()
            processes.reap_adopted({child.pid for child in self._children.values() if child.pid is not None})

    def mark_ready(self) -> None:
        self._ready = True
        self.save_records()

    def save_records(self) -> None:
        """Writes who runs now. A full disk must not end the stack, only the truth of this file."""
        parts = {name: seen for name, child in self._children.items() if (seen := child.look()) is not None}
        records = Records(supervisor=processes.record_self(), ready=self._ready, parts=parts)
        with contextlib.suppress(OSError):
            records.save(self._data.processes)

    async def stop(self) -> None:
        """Ends every part, those that use others first."""
        for names in STOP_ORDER:
            # "replica-2" is a replica.
            present = [name for name in self._children if name.partition("-")[0] in names]
            await asyncio.gather(*(self._children[name].stop() for name in present))
            await asyncio.gather(*(self._tasks[name] for name in present))

    def kill(self) -> None:
        """Ends every part at once, for whoever cannot wait for `stop`."""
        for child in self._children.values():
            child.give_up()
        processes.kill_all_below_self()

    def _obituary(self, child: Child, what: str) -> str:
        log = self._data.log(child.part.name)
        return f"{child.part.name} {what}; the end of {log}:\n{folder.last_lines(log)}"
