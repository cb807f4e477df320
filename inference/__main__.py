"""`python -m inference`: one replica, configured by WEFT_REPLICA_* in the environment."""

import asyncio

from inference.launcher import Launcher
from inference.settings import ReplicaSettings


async def _run() -> None:
    await Launcher(ReplicaSettings()).run()  # type: ignore[call-arg]


if __name__ == "__main__":
    asyncio.run(_run())
