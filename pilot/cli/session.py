"""What commands share: the daemon, targets by address, number or name, trust before dialling, the path to a peer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple

from pilot.cli.args import Args, usage
from pilot.cli.output import Output, rows
from pilot.cli.settings import Settings
from pilot.errors import PilotError
from pilot.sdk.client import LocalClient
from pilot.sdk.streams import Connection
from pilot.wire.address import Address, parse, parse_node

AUTO_HANDSHAKE_WAIT_MS = 5000


class Target(NamedTuple):
    """A peer the user named. typed: his word; public: None if not known."""

    typed: str
    address: Address
    public: bool | None

    @property
    def label(self) -> str:
        """`home-agent-2 (1:0001.0000.0009)`, or just the address."""
        return f"{self.typed} ({self.address})" if parse(self.typed) is None else str(self.address)


class PathState(NamedTuple):
    """How traffic to a peer flows. kind: direct, lan, hole-punched, relay; "" if the daemon does not tell."""

    kind: str
    encrypted: bool | None
    rtt_ms: float | None = None

    def __str__(self) -> str:
        secure = "" if self.encrypted is None else "encrypted" if self.encrypted else "not encrypted"
        return ", ".join(filter(None, (self.kind, secure)))


class Steps:
    """What `--trace` prints while a command works: each step, and the time since it began."""

    def __init__(self, s: Session) -> None:
        self._out = s.out if s.args.has("trace") else None
        self._began = monotonic()

    def passed(self, name: str) -> None:
        """A step is done."""
        if self._out:
            self._out.note(f"TRACE {name:<22} {(monotonic() - self._began) * 1e3:12.3f}ms")


class Session:
    """One run of one command."""

    def __init__(self, args: Args, out: Output, settings: Settings) -> None:
        self.args = args
        self.out = out
        self.settings = settings
        self._client: LocalClient | None = None

    @property
    def client(self) -> LocalClient:
        """The daemon. Raises PilotError(not_running)."""
        if self._client is None:
            self._client = LocalClient(self.settings.socket)
        return self._client

    def close(self) -> None:
        """Ends the connection to the daemon, if there is one."""
        if self._client is not None:
            self._client.close()

    # ---- targets ----

    def find(self, name: str) -> dict[str, Any]:
        """`{hostname, node_id, address, public}` of a name. PilotError(not_found) says what to do."""
        name.encode()  # UnicodeEncodeError for what is not UTF-8; main() names it
        try:
            return self.client.resolve_hostname(name)
        except PilotError as e:
            if e.code in ("not_running", "timeout", "internal") or "unreachable" in e.message:
                raise
            message = f'cannot find "{name}" — hostname not found or no mutual trust'
            hint = f'establish trust first: pilotctl handshake {name} "reason"'
            raise PilotError("not_found", message, hint) from None

    def target(self, typed: str) -> Target:
        """A peer by address, node number or name."""
        address = parse(typed)
        if address is not None:
            return Target(typed, address, None)
        node = parse_node(typed)
        if node is not None:
            return Target(typed, Address(0, node), None)
        if not typed:
            raise usage("missing argument: <target>")
        reply = self.find(typed)
        resolved = parse(str(reply.get("address", "")))
        if resolved is None:
            raise PilotError("internal", f'the daemon gave no address for "{typed}"')
        return Target(typed, resolved, reply.get("public") is True)

    def waiting_node(self, typed: str) -> int:
        """A node that may have asked for trust: the registry hides the names of private nodes, so a name is first
        looked for among the pending requests."""
        if parse(typed) is None and parse_node(typed) is None:
            for row in rows(self.client.pending_handshakes(), "pending"):
                node = row.get("node_id")
                if isinstance(node, int) and typed in (row.get("hostname"), self._registered_name(node)):
                    return node
        return self.target(typed).address.node

    def _registered_name(self, node: int) -> str:
        with suppress(PilotError):
            return str(self.lookup(node).get("hostname", ""))
        return ""

    def lookup(self, node: int) -> dict[str, Any]:
        """What the registry says about a node. Raises PilotError: not_found, connection_failed."""
        from pilot.cli.lookup import ask

        address = self.settings.registry
        if not address:
            with suppress(PilotError):
                address = str(self.client.info().get("registry_addr") or "")
        return ask(address, {"type": "lookup", "node_id": node})

    # ---- trust ----

    def dial_target(self, passed: Callable[[str], None] = lambda _: None) -> Target:
        """The first positional as a peer this node may dial: trusted, or public (then trust is asked for). passed: hears the name
        of each step that is done."""
        self.args.need("target")
        target = self.target(self.args.at(0))
        passed("parseAddrOrHostname")
        if not self.args.has("no-auto-handshake"):
            self._ensure_trust(target)
        passed("maybeAutoHandshake")
        return target

    def _ensure_trust(self, target: Target) -> None:
        node = target.address.node
        try:
            if self.client.wait_for_trust(node, 0):
                return
        except PilotError as e:
            if "unknown" in e.message:  # a daemon of early 2026 has no such question
                return
            raise
        public = target.public
        if not public:
            with suppress(PilotError):
                public = self.lookup(node).get("public") is True
        if not public:
            raise PilotError(
                "trust_required",
                f"no trust between this node and {target.label}",
                f'ask for it: pilotctl handshake {target.typed} "reason"; then they run: pilotctl approve',
            )
        self.out.note(f"{target.label} is public: asking for trust...")
        self.client.handshake(node, "automatic handshake")
        self.client.wait_for_trust(node, AUTO_HANDSHAKE_WAIT_MS)

    # ---- streams and paths ----

    def dial(self, target: Target, port: int, timeout: float, service: str = "") -> Connection:
        """A stream to a peer's port. service: how the port is named in the error."""
        try:
            return self.client.dial_addr(target.address, port, timeout)
        except PilotError as e:
            if e.code in ("not_running", "internal"):
                raise
            what = f"({service} port {port})" if service else f"port {port}"
            code = e.code if e.code in ("timeout", "trust_required") else "connection_failed"
            refused = "refused" in e.message
            hint = f"check that {target.address} is reachable: pilotctl ping {target.typed}"
            if refused:
                hint = f"nobody listens there; on {target.typed} run for example: pilotctl recv {port}"
            reason = e.message.rpartition("daemon: ")[2]
            message = f"cannot connect to {target.address} {what}: {reason}"
            raise PilotError(code, message, hint, e.retryable) from None

    def path(self, node: int) -> PathState:
        """How traffic to a peer flows now."""
        try:
            reply = self.client.peer_path(node)
        except PilotError as e:
            if e.code != "not_supported":
                return PathState("", None)
        else:
            way = reply.get("path")
            way = way if isinstance(way, dict) else {}
            rtt = way.get("rtt_ms")
            return PathState(
                str(way.get("kind") or ""),
                reply.get("encrypted") is True,
                float(rtt) if isinstance(rtt, int | float) else None,
            )
        for row in rows(self.client.info(), "peer_list"):
            if row.get("node_id") == node:
                return PathState("relay" if row.get("relay") is True else "", row.get("encrypted") is True)
        return PathState("", None)
