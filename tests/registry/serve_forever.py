"""A registry as a process of its own, for tests that kill it: prints its port, then serves until it is killed."""

import asyncio
import sys

import uvloop

from pilot.registry.config import RegistryConfig
from pilot.registry.server import RegistryServer
from pilot.registry.store import Store


async def main() -> None:
    server = RegistryServer(Store(sys.argv[1]), config=RegistryConfig(registrations_per_min_ip=1e6))
    _, port = await server.start("127.0.0.1", 0)
    print(port, flush=True)
    await asyncio.Event().wait()


uvloop.run(main())
