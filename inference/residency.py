"""Which adapters vLLM knows, and the one order in which they come and go.

In: on disk and proved, then a turn, then vLLM's registry. Out: no new request, none in flight, out of the registry, out
of the engine's memory, and only then may the files go. An adapter that vLLM still names while its files are gone kills
the engine for every tenant. Files are fetched while their request waits for its turn. Whose turn it is, is the turns'.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from inference.cache import AdapterCache
from inference.hottest import Hottest
from inference.loader import Loader, in_time
from inference.metrics import Metrics
from inference.problems import AdapterError
from inference.quarantine import Quarantine
from inference.registry import Registry
from inference.tenant import Turn
from inference.turns import Turns
from inference.waits import Wait
from inference.work import Work
from service.contracts.replica import Tier

ABORT_SECONDS = 0.3
"""vLLM aborts a departed client's request just after its handler returned, and one that ran into a stop string just
after it told so; the adapter counts as used for so long."""


@dataclass(frozen=True)
class Ask:
    """What a request wants: `adapter` is None for the base, `cost` its likely tokens, `size` the bytes of its body."""

    tenant: str
    adapter: str | None
    cost: float = 0.0
    size: int = 0


@dataclass(frozen=True)
class Visit:
    """A request inside vLLM, and the tier in which it found its adapter; None for the base."""

    turn: Turn
    tier: Tier | None
    waited: float = 0.0
    """Seconds before vLLM; what its own adapter's load took of them is not counted."""


class Residency:
    """One event loop. A request is one `try_enter` or `enter`, then one `leave`."""

    def __init__(
        self,
        registry: Registry,
        cache: AdapterCache,
        turns: Turns,
        metrics: Metrics,
        hottest: Hottest,
        quarantine: Quarantine,
        *,
        hold_seconds: float,
    ) -> None:
        self._registry = registry
        self._cache = cache
        self._turns = turns
        self._loader = Loader(registry, cache, self._idle)
        self._metrics = metrics
        self._hottest = hottest
        self._hold_seconds = hold_seconds
        self._uses: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._closing: Counter[str] = Counter()
        """How many evictions of an adapter go on, once its requests are done; until the last no new one is let in."""
        self._quarantine = quarantine

    def tier(self, adapter: str) -> Tier | None:
        """Where the adapter is now; None if only storage may have it."""
        if adapter in self._registry:
            recent = islice(self._registry.recent_first(), self._turns.limits.slots)
            return "gpu" if adapter in recent else "cpu"
        return "disk" if self._cache.holds(adapter) else None

    def tiers(self) -> dict[str, Tier]:
        """Every adapter on this replica, fastest tiers and last used first."""
        gpu = self._turns.limits.slots
        known: dict[str, Tier] = {
            name: "gpu" if place < gpu else "cpu" for place, name in enumerate(self._registry.recent_first())
        }
        disk: dict[str, Tier] = {name: "disk" for name in reversed(self._cache.adapters) if name not in known}
        return known | disk

    def try_enter(self, ask: Ask) -> Visit | None:
        """All of admission for an adapter that vLLM knows and that has a turn free; None where it takes waiting."""
        adapter = ask.adapter
        if adapter is not None:
            self._quarantine.check(adapter)
            if adapter in self._closing or not self._registry.usable(adapter):
                return None
        turn = self._turns.try_take(ask.tenant, adapter, ask.cost)
        if turn is None:
            return None
        self._metrics.waited(0.0)
        if adapter is None:
            return Visit(turn, None)
        tier = self.tier(adapter) or "gpu"
        self._registry.touch(adapter, ask.tenant)
        self._uses[adapter] += 1
        return self._visit(turn, adapter, tier)

    async def enter(self, ask: Ask) -> Visit:
        """Waits until the adapter is loaded and has a turn. Every enter that returns needs one `leave`.

        Raises AdapterError where the adapter cannot be had, the queue is full or the wait takes too long.
        """
        deadline = asyncio.get_running_loop().time() + self._hold_seconds
        turn = self._turns.join(ask.tenant, ask.adapter, ask.cost, ask.size)
        wait = Wait(self._cache.clock)
        try:
            if ask.adapter is None:
                await self._granted(turn, deadline)
                return Visit(turn, None, wait.seconds)
            tier = await self._enter_adapter(turn, ask.adapter, wait, deadline)
            return self._visit(turn, ask.adapter, tier, wait.seconds)
        except BaseException:
            self._turns.leave(turn, used=0.0)
            raise
        finally:
            self._metrics.waited(wait.seconds)

    def leave(self, visit: Visit, *, used: float | None = None, aborted: bool) -> None:
        """The request is over: its response is complete, or its client is gone. `used` is in tokens."""
        if aborted:
            asyncio.get_running_loop().call_later(ABORT_SECONDS, self._give_back, visit, used)
        else:
            self._give_back(visit, used)

    def rest(self, visit: Visit, work: Work) -> None:
        """The engine has ended all that it was asked for the request, whose client may take its answer more slowly.

        If nothing more is asked shortly, and the request is not over by then, others may have its turn.
        """
        asyncio.get_running_loop().call_later(ABORT_SECONDS, self._rest, visit, work)

    async def ensure(self, adapter: str, tenant: str = "") -> Tier | None:
        """Loads the adapter without a request; the tier it was found in."""
        ask = Ask(tenant, adapter)
        visit = self.try_enter(ask) or await self.enter(ask)
        self.leave(visit, used=0.0, aborted=False)
        return visit.tier

    async def evict(self, adapter: str, *, seconds: float) -> None:
        """Takes the adapter out of vLLM and off the disk, waiting at most so long for its requests in flight."""
        self._closing[adapter] += 1
        try:
            try:
                async with asyncio.timeout(seconds):
                    await self._until(lambda: self._uses[adapter] == 0)
            except TimeoutError:
                message = f"{self._uses[adapter]} requests still use this adapter; try again."
                raise AdapterError("no_capacity", message) from None
            await self._registry.unload(adapter, lambda: self._uses[adapter] > 0)
            await self._cache.delete(adapter)
        finally:
            self._closing[adapter] -= 1
            if not self._closing[adapter]:
                del self._closing[adapter]
            self._wake()

    # -- coming in ----------------------------------------------------------------------------------------------------

    async def _enter_adapter(self, turn: Turn, adapter: str, wait: Wait, deadline: float) -> Tier:
        async with in_time(deadline, "adapter_loading", "The adapter is being unloaded; try again shortly."):
            await self._until(lambda: adapter not in self._closing)
        self._quarantine.check(adapter)
        tier = self.tier(adapter) or "store"
        self._uses[adapter] += 1
        self._cache.want(adapter)
        try:
            with wait.loading(adapter):
                await self._loader.prefetch(adapter, turn.tenant, deadline)
            await self._granted(turn, deadline)
            with wait.loading(adapter):
                await self._loader.load(adapter, turn.tenant, deadline)
            # Those that waited when it came to light are as bad.
            self._quarantine.check(adapter)
        except BaseException:
            self._release(adapter)
            raise
        finally:
            self._cache.unwant(adapter)
        return tier

    async def _granted(self, turn: Turn, deadline: float) -> None:
        self._turns.ready(turn)
        try:
            async with asyncio.timeout_at(deadline):
                await turn.granted
        except TimeoutError:
            again = self._turns.seconds_to_wait(turn.tenant)
            message = "This replica stayed busy with requests that came before."
            raise AdapterError("no_capacity", message, retry_after=again) from None

    # -- bookkeeping --------------------------------------------------------------------------------------------------

    def _idle(self) -> list[str]:
        """What vLLM knows and is not working with, the first to go first. Requests may yet wait for it."""
        running = self._turns.running
        names = self._registry.first_to_go(lambda name: self._uses[name] > 0)
        return [name for name in names if name not in running and name not in self._closing]

    def _visit(self, turn: Turn, adapter: str, tier: Tier, waited: float = 0.0) -> Visit:
        self._metrics.found(tier)
        self._hottest.note(adapter)
        return Visit(turn, tier, waited)

    def _rest(self, visit: Visit, work: Work) -> None:
        turn = visit.turn
        if turn.over or turn.computed or not work.close():
            return
        used = work.tokens
        self._turns.computed(turn, used and used.total)
        self._done_with(turn.adapter)

    def _give_back(self, visit: Visit, used: float | None) -> None:
        turn = visit.turn
        self._turns.leave(turn, used)
        if not turn.computed:
            self._done_with(turn.adapter)

    def _done_with(self, adapter: str | None) -> None:
        if adapter is not None:
            self._release(adapter)

    def _release(self, adapter: str) -> None:
        self._uses[adapter] -= 1
        if self._uses[adapter] == 0:
            del self._uses[adapter]
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()
