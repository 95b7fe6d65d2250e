"""Things that go wrong in a simulated network, one after the other, and mend themselves."""

from __future__ import annotations

from simnat import SECOND
from simnet import Net, chain
from simnode import SimNode

MAX_S = 15.0


class Trouble:
    """One method per kind; the docstring is what the trace says."""

    def __init__(self, net: Net) -> None:
        self.net, self.world, self.rng = net, net.world, net.rng
        self._kinds = [name for name in dir(self) if name.startswith("do_")]

    def strike(self) -> None:
        """Something happens to somebody."""
        node = self.rng.choice(list(self.world.nodes.values()))
        lasts = self.rng.choice((self.rng.uniform(0.3, 3.0), self.rng.uniform(1.0, MAX_S)))
        what = self.rng.choice(self._kinds)
        said = getattr(self, what)(node, lasts)
        if said:
            self.net.note(f"{said}, {lasts:.1f} s" if "{" not in said else said.format(lasts=lasts))

    def do_restart(self, node: SimNode, lasts: float) -> str:
        if not node.up or node.asleep or node.halted:
            return ""
        node.stop()
        self.net.later(min(lasts, 6.0), lambda: self._start(node))
        return f"process of {node.number} ends"

    def _start(self, node: SimNode) -> None:
        if not node.up:
            node.start()
            for other in self.world.nodes.values():
                if other is not node:
                    node.trust(other)

    def do_sleep(self, node: SimNode, lasts: float) -> str:
        if not node.runs:
            return ""
        node.sleep()
        wakes, notices = node.starts, self.rng.uniform(0.0, 5.0)

        def noticed() -> None:
            if node.runs and node.starts == wakes:
                node.network_changed()

        def awake() -> None:
            node.wake()
            if lasts > 3.0:  # below that nobody notices: netwatch.SLEPT_S
                self.net.later(notices, noticed)

        self.net.later(lasts, awake)
        return f"machine of {node.number} sleeps"

    def do_halt(self, node: SimNode, lasts: float) -> str:
        if not node.runs:
            return ""
        node.halt()
        self.net.later(lasts, node.resume)
        return f"process of {node.number} is stopped"

    def do_forget(self, node: SimNode, lasts: float) -> str:
        for nat in chain(node):
            nat.reset()
        return f"routers of {node.number} restart" if node.nat else ""

    def do_renumber(self, node: SimNode, lasts: float) -> str:
        nat = node.nat
        if not nat or nat.outer or any(n.nat is nat and n is not node for n in self.world.nodes.values()):
            return ""
        del self.world.nats[nat.ip]
        nat.reset()
        nat.ip = self._fresh_ip()
        self.world.nats[nat.ip] = nat
        return f"outside address of {node.number} becomes {nat.ip}"

    def _fresh_ip(self) -> str:
        while True:
            ip = f"203.0.113.{self.rng.randrange(100, 250)}"
            if ip not in self.world.nats and all(n.inside[0] != ip for n in self.world.nodes.values()):
                return ip

    def do_roam(self, node: SimNode, lasts: float) -> str:
        if node.asleep:
            return ""
        kind = self.rng.choice(("none", "full_cone", "restricted", "port_restricted", "symmetric", "double"))
        inside, nat = self.net.place(kind)
        node.move(inside, nat)
        starts, notices = node.starts, self.rng.uniform(0.1, 0.6)

        def noticed() -> None:
            if node.runs and node.starts == starts:
                node.network_changed()

        self.net.later(notices, noticed)
        return f"{node.number} moves: {self.net.describe(node, kind)}, noticed after {notices:.1f}; -"

    def do_flap(self, node: SimNode, lasts: float) -> str:
        """The network watch reports again and again, and nothing really changed."""
        if not node.runs:
            return ""
        for i in range(3):
            self.net.later(0.2 + i * lasts / 3, lambda: node.runs and node.network_changed())
        return f"interfaces of {node.number} flap"

    def do_beacon_restart(self, node: SimNode, lasts: float) -> str:
        beacon = self.rng.choice([b for b in self.world.beacons.values() if b.up] or [None])
        if beacon is None:
            return ""
        beacon.restart()
        return f"beacon {beacon.addr[0]} restarts"

    def do_beacon_down(self, node: SimNode, lasts: float) -> str:
        beacon = self.rng.choice([b for b in self.world.beacons.values() if b.up] or [None])
        if beacon is None:
            return ""
        beacon.stop()
        self.net.later(lasts, beacon.start)
        return f"beacon {beacon.addr[0]} is away"

    def do_registry(self, node: SimNode, lasts: float) -> str:
        self.world.registry_up = False
        self.net.later(lasts, lambda: setattr(self.world, "registry_up", True))
        return "registry is away"

    def do_cut(self, node: SimNode, lasts: float) -> str:
        self.net.cut(lambda src, dst: src.startswith("203.") and dst.startswith("203."), lasts)
        return "nothing passes between sites"

    def do_one_way(self, node: SimNode, lasts: float) -> str:
        host = node.outside_ip
        self.net.cut(lambda src, dst: src == host and dst.startswith("203."), lasts)
        return f"nothing passes from {node.number} to other sites"

    def do_dark(self, node: SimNode, lasts: float) -> str:
        node.udp_blocked = True
        self.net.later(lasts, lambda: setattr(node, "udp_blocked", False))
        return f"no UDP at {node.number}"

    def do_loss(self, node: SimNode, lasts: float) -> str:
        was = node.link.loss
        if was > 0.1:
            return ""
        node.link.loss = 0.15
        self.net.later(lasts, lambda: setattr(node.link, "loss", was))
        return f"link of {node.number} loses much"

    def do_slow(self, node: SimNode, lasts: float) -> str:
        was = node.link.delay_s
        if was > 0.25:
            return ""
        node.link.delay_s = 0.3
        self.net.later(lasts, lambda: setattr(node.link, "delay_s", was))
        return f"link of {node.number} is slow"

    def do_rotate(self, node: SimNode, lasts: float) -> str:
        if not node.runs or not node.paths.exchange.rotate(node.now):
            return ""
        node.paths.flush(node.now)
        node.touched = True
        return f"{node.number} takes a new tunnel key; -"

    def do_quiet(self, node: SimNode, lasts: float) -> str:
        """Nobody says anything for longer than short mappings live."""
        self.world_quiet_until = self.world.now_ns + int((20 + 2 * lasts) * SECOND)
        return "applications are silent"

    world_quiet_until = 0
