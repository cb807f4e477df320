"""Client of the worker API for adapters that come and go (`service.contracts.transfer`)."""

from service.contracts.transfer import (
    TransferClaim,
    TransferControl,
    TransferFinish,
    TransferFinished,
    TransferLease,
    TransferRenew,
    TransferUploads,
)
from service.contracts.worker import UploadTargets
from trainer.control import ATTEMPT_SECONDS, WorkerApi, parse


class TransferClient(WorkerApi):
    PLACE = "transfers"

    async def claim(self, request: TransferClaim) -> TransferLease | None:
        """One try. None when there is nothing to do."""
        raw = await self._once("/lease", request, ATTEMPT_SECONDS)
        return parse(TransferLease, raw) if raw else None

    async def renew(self, transfer: str, request: TransferRenew, limit: float) -> TransferControl:
        """One try of at most `limit` seconds: the caller has a deadline of its own to keep."""
        return parse(TransferControl, await self._once(f"/{transfer}/renew", request, limit))

    async def uploads(self, transfer: str, request: TransferUploads, patience: float) -> UploadTargets:
        return parse(UploadTargets, await self._call(f"/{transfer}/uploads", request, patience))

    async def finish(self, transfer: str, finish: TransferFinish, patience: float) -> TransferFinished:
        return parse(TransferFinished, await self._call(f"/{transfer}/finish", finish, patience))
