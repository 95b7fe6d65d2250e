"""The registry's handlers without their sockets: what one request costs."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot.registry.commands import COMMANDS
from pilot.registry.config import RegistryConfig
from pilot.registry.core import Peer, Registry
from pilot.registry.store import MemoryStore

Measure = Callable[[str, Callable[[], Any]], Any]
LISTEN = ":4000"
NODES = 1000


class Agent:
    def __init__(self, registry: Registry, peer: Peer) -> None:
        self._key = Ed25519PrivateKey.generate()
        self._registry, self._peer = registry, peer
        self.key = base64.b64encode(self._key.public_key().public_bytes_raw()).decode()
        signature = self.signature(f"register:{LISTEN}:{self.key}")
        self.registration = {"public_key": self.key, "listen_addr": LISTEN, "signature": signature}
        self.number = int(self.ask("register", self.registration)["node_id"])

    def signature(self, text: str) -> str:
        return base64.b64encode(self._key.sign(text.encode())).decode()

    def ask(self, command: str, request: dict[str, Any]) -> dict[str, Any]:
        return COMMANDS[command].run(self._registry, self._peer, request)


@pytest.fixture
def agents() -> list[Agent]:
    registry = Registry(MemoryStore(), config=RegistryConfig(registrations_per_min_ip=10**9))
    return [Agent(registry, Peer(f"198.51.{i // 200}.{i % 200 + 1}", 4000)) for i in range(NODES)]


def test_lookup(measure: Measure, agents: list[Agent]) -> None:
    reply = measure("registry, lookup", lambda: agents[0].ask("lookup", {"node_id": agents[1].number}))
    assert reply["node_id"] == agents[1].number


def test_heartbeat(measure: Measure, agents: list[Agent]) -> None:
    """A signature that was verified is remembered, as long as it is the same."""
    one = agents[0]
    request = {"node_id": one.number, "signature": one.signature(f"heartbeat:{one.number}")}
    measure("registry, signed heartbeat", lambda: one.ask("heartbeat", request))


def test_register_again(measure: Measure, agents: list[Agent]) -> None:
    turn = itertools.cycle(agents)

    def again() -> dict[str, Any]:
        agent = next(turn)
        return agent.ask("register", agent.registration)

    assert measure("registry, registration of a known node", again)["node_id"]
