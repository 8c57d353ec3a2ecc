"""`python -m tunewright.webhooks`: delivers events of webhooks; started by the scheduler when some are due."""

from __future__ import annotations

import asyncio
import signal
import sys

from setproctitle import setproctitle

from tunewright.config import settings_in_child
from tunewright.logs import configure_logging
from tunewright.registry.workspace import Workspace
from tunewright.store.store import Store
from tunewright.supervisor.heartbeat import beat
from tunewright.webhooks.deliverer import Deliverer
from tunewright.webhooks.signing import SigningKey


def main() -> int:
    settings = settings_in_child()
    setproctitle("tunewright: webhooks")
    configure_logging(settings.processes.log_level)
    store = Store.open(settings.storage.resolved_database_url)
    workspace = Workspace.of(settings.storage)
    heartbeat = workspace.heartbeat("webhooks")

    async def deliver() -> None:
        deliverer = Deliverer(
            settings.webhooks,
            store,
            lambda: SigningKey.open(workspace.webhook_key),
            lambda: beat(heartbeat),
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, deliverer.stopping.set)
        await deliverer.run()

    asyncio.run(deliver())
    store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
