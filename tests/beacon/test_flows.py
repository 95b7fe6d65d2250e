"""Ten flows through one beacon at once: all of them pass, none at the cost of another. `make bench-relay` measures how fast."""

from __future__ import annotations

import select
import time

from beacon_support import Udp

from pilot._core import RelayLoop
from pilot.wire import beacon as wire

FLOWS, ROUNDS, TRAIN = 10, 100, 20


def test_ten_flows_share_a_beacon() -> None:
    relay = RelayLoop(("127.0.0.1", 0))
    relay.start()
    try:
        senders = [Udp(relay.local_addr).register(100 + i) for i in range(FLOWS)]
        receivers = [Udp(relay.local_addr).register(200 + i) for i in range(FLOWS)]
        got = [0] * FLOWS
        began = time.monotonic()
        frame = b"PILS" + bytes(1300)
        for _ in range(ROUNDS):
            for i, sender in enumerate(senders):
                for _ in range(TRAIN):
                    sender.relay(100 + i, 200 + i, frame)
            for i, receiver in enumerate(receivers):
                got[i] += receiver.waiting().count(wire.Deliver(100 + i, frame).build())
        end = time.monotonic() + 10
        while sum(got) < FLOWS * ROUNDS * TRAIN and time.monotonic() < end:
            ready, _, _ = select.select([r.socket for r in receivers], [], [], 0.5)
            if not ready:
                break
            for i, receiver in enumerate(receivers):
                got[i] += receiver.waiting().count(wire.Deliver(100 + i, frame).build())
        print(f"{sum(got) * len(frame) * 8 / (time.monotonic() - began) / 1e6:.0f} Mbit/s")
        stats = relay.stats()
        assert stats["limited"] == stats["spoofed"] == stats["not_found"] == 0, "nobody is held up by a limit"
        assert min(got) > 0 and max(got) <= 2 * min(got), got
        for udp in (*senders, *receivers):
            udp.close()
    finally:
        relay.stop()
