"""Imports and merges beside the jobs: asked for now and then, done one at a time, handed back when the agent ends."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

from service.contracts.transfer import TransferClaim, TransferLease
from trainer.agent.transfer_run import TransferRun
from trainer.control import Refused, ServiceAway, pause
from trainer.settings import TrainerSettings
from trainer.transfer_client import TransferClient

log = logging.getLogger(__name__)

REFUSED_PAUSE_SECONDS = 60.0
"""A service that knows no transfers may be another version by then."""


class Transfers:
    def __init__(
        self,
        settings: TrainerSettings,
        converter: tuple[str, ...],
        folder: Path,
        client: TransferClient,
        store: aiohttp.ClientSession,
    ) -> None:
        self._settings, self._converter, self._folder = settings, converter, folder
        self._client, self._store = client, store

    async def run(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Until cancelled. Nothing is asked for before `ready`: only then the base is known to be the right one."""
        failures = 0
        while True:
            await ready()
            try:
                lease = await self._ask()
                failures = 0
            except ServiceAway:  # The claims of jobs have told already.
                await asyncio.sleep(self._settings.transfer_poll_seconds + pause(failures))
                failures += 1
                continue
            except Refused as error:
                log.warning("transfers are not asked for just now: %s", error)
                await asyncio.sleep(REFUSED_PAUSE_SECONDS)
                continue
            if lease is None:
                await asyncio.sleep(self._settings.transfer_poll_seconds)
            else:
                await self._carry(lease)

    async def _ask(self) -> TransferLease | None:
        settings = self._settings
        return await self._client.claim(
            TransferClaim(
                worker=settings.worker_name, base_model=settings.base_model, base_fingerprint=settings.base_fingerprint
            )
        )

    async def _carry(self, lease: TransferLease) -> None:
        log.info("transfer %s claimed (epoch %d)", lease.id, lease.epoch)
        run = TransferRun(self._settings, self._converter, self._folder, self._client, self._store, lease)
        try:
            await run.run()
        except Exception:
            # The lease runs out and it is tried again, here or elsewhere, as often as the service allows.
            log.exception("transfer %s: unexpected error, left to its lease", lease.id)
            await asyncio.sleep(self._settings.transfer_poll_seconds)
