"""The handshake between beacons with a secret, tied to the relay and the clock."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from pilot._core import CoreError, RelayLoop
from pilot.beacon.peers import Addr, Peers
from pilot.beacon.secret import Handshakes, OpenKey, SealKey, Send
from pilot.registry.endpoint import join

log = logging.getLogger("pilot.beacon")


class Sessions:
    """One beacon's sessions with its peers. opened: keys for sealing that were installed."""

    def __init__(self, relay: RelayLoop, peers: Peers, secret: str, greet: Callable[[Addr], None]) -> None:
        """greet(peer): there is a new session to it; it may have been restarted. From here on the relay believes sealed datagrams
        of peers only."""
        self._relay = relay
        self._peers = peers
        self._greet = greet
        self._machine = Handshakes(secret, os.urandom)
        self._timer: asyncio.TimerHandle | None = None
        self.opened = 0
        relay.set_secret(self._machine.letter_key)

    def peers_changed(self) -> None:
        """The relay accepts another set of peers now."""
        self._machine.set_peers(self._peers.accepted(), self._peers.targets(), self._now())
        self._work()

    def letters(self) -> None:
        """The relay has letters."""
        for addr, letter in self._relay.take_letters():
            self._machine.receive(addr, letter, self._now())
        self._work()

    def stop(self) -> None:
        """Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _work(self) -> None:
        self._machine.tick(self._now())
        for action in self._machine.take():
            try:
                match action:
                    case Send():
                        self._relay.send(action.addr, action.letter)
                    case OpenKey():
                        self._relay.add_open_key(action.addr, action.session, action.key)
                    case SealKey():
                        if self._relay.set_seal_key(action.addr, action.session, action.key):
                            self.opened += 1
                            self._greet(action.addr)
            except CoreError as error:
                log.debug("handshake with a peer beacon", extra={"peer": join(*action.addr), "error": str(error)})
        self.stop()
        deadline = self._machine.deadline()
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline, self._work)
