"""The table of commands: where each lives, its arguments, what it does and returns. Parser, help and `context` read it.

An argument text is `<positional>`, `[<optional>]`, `[--switch]`, `--flag <value>` or `[--flag [<maybe a value>]]`.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """target: module.function. raw: words behind the first positional are not flags, whatever they look like."""

    target: str
    args: tuple[str, ...]
    description: str
    returns: str
    raw: bool = False


_TRUST = "[--no-auto-handshake]"
_COUNT = "[--count <n>]"
_TIMEOUT = "[--timeout <duration>]"
_ADMIN = "[--admin-token <token>]"

COMMANDS: dict[str, Command] = {
    # set-up and the daemon
    "init": Command(
        "bootstrap.init",
        ("[--registry <host:port>]", "[--beacon <host:port>]", "[--hostname <name>]", "[--socket <path>]", "[--public]"),
        "write ~/.pilot/config.json", "config_path, registry, beacon, socket, hostname, public"),
    "config": Command("bootstrap.config", ("[--set <key=value>]",), "show or change the configuration", "the configuration"),
    "context": Command("bootstrap.context", ("[<command>]",), "describe all commands for programs", "this catalog"),
    "quickstart": Command("bootstrap.quickstart", (), "how to get started", "text"),
    "version": Command("bootstrap.version", (), "print the version", "the version"),
    "daemon start": Command(
        "daemon.start",
        ("[--registry <host:port>]", "[--beacon <host:port>]", "[--hostname <name>]", "[--public]", "[--socket <path>]",
         "[--listen <ip:port>]", "[--endpoint <ip:port>]", "[--advertise-endpoint <ip:port>]", "[--identity <file>]",
         "[--config <file>]", "[--email <address>]", "[--owner <address>]", "[--webhook <url>]", "[--networks <ids>]",
         "[--trust-auto-approve]", "[--trust-same-network]", "[--relay-only]", "[--accept-era1]", "[--no-encrypt]", "[--no-echo]",
         "[--no-dataexchange]", "[--no-eventstream]", "[--keepalive <duration>]", "[--idle-timeout <duration>]",
         "[--congestion <name>]", "[--max-segment <bytes>]", "[--spin <time>]", "[--received-quota <size>]",
         "[--dataexchange-max-frame <size>]", "[--registry-tls]", "[--registry-trust <mode>]",
         "[--registry-fingerprint <hex>]", "[--transport <name>]", "[--proxy <url>]", "[--compat-beacon <url>]",
         "[--tls-trust <mode>]", "[--compat-fingerprint <hex>]", "[--admin-token <token>]",
         "[--log-level <level>]", "[--log-format <text or json>]", "[--wait <duration>]", "[--foreground]", "[--dry-run]"),
        "start the daemon in the background; --dry-run: say what it would use and change nothing",
        "pid, node_id, address, hostname, socket, log_file"),
    "daemon stop": Command("daemon.stop", (), "stop the daemon", "pid, forced"),
    "daemon status": Command(
        "daemon.status", ("[--check]",), "is the daemon running? --check: exit status only",
        "running, pid, pid_file, socket, responsive, node_id, address, hostname, uptime_secs, peers, connections"),
    # discovery and registry
    "info": Command("diagnostics.info", (), "state of this node", "the node's state with peers and connections"),
    "find": Command("discovery.find", ("<hostname>",), "address of a name", "hostname, node_id, address, public", True),
    "lookup": Command("discovery.lookup", ("<target>",), "ask the registry about a node", "the registry's entry"),
    "register": Command("discovery.register", ("[<listen_addr>]",), "register this node again", "the registry's reply"),
    "deregister": Command("discovery.deregister", (), "take this node out of the registry", "type"),
    "rotate-key": Command("discovery.rotate_key", (), "give this node a new identity key", "the registry's reply"),
    "set-hostname": Command("discovery.set_hostname", ("<name>",), "name this node", "hostname, node_id"),
    "clear-hostname": Command("discovery.clear_hostname", (), "remove this node's name", "hostname"),
    "set-public": Command("discovery.set_public", (), "let every node find and reach this one", "the registry's reply"),
    "set-private": Command("discovery.set_private", (), "only trusted nodes find this one", "the registry's reply"),
    "set-tags": Command("discovery.set_tags", ("<tag>", "[<tag>]", "[<tag>]"), "tag this node", "node_id, tags"),
    "clear-tags": Command("discovery.clear_tags", (), "remove all tags", "tags"),
    "enable-tasks": Command("discovery.enable_tasks", (), "say in the registry that this node takes tasks", "node_id, task_exec"),
    "disable-tasks": Command("discovery.disable_tasks", (), "say that it takes none", "node_id, task_exec"),
    "set-webhook": Command("discovery.set_webhook", ("<url>",), "post events to a URL", "webhook, applied"),
    "clear-webhook": Command("discovery.clear_webhook", (), "stop posting events", "webhook, applied"),
    # trust
    "handshake": Command(
        "trust.handshake", ("<target>", "[<justification>]"), "ask a node for trust", "node_id, status", True),
    "approve": Command("trust.approve", ("<target>",), "grant the trust a node asked for", "node_id, status"),
    "reject": Command("trust.reject", ("<target>", "[<reason>]"), "refuse trust", "node_id, status"),
    "untrust": Command("trust.untrust", ("<target>",), "end trust", "node_id"),
    "pending": Command("trust.pending", (), "who asks for trust", "pending: node_id, public_key, justification, received_at"),
    "trust": Command(
        "trust.trusted", ("[--search <text>]", "[--limit <n>]"), "whom this node trusts",
        "trusted: node_id, public_key, approved_at, mutual, network; total"),
    # messages and files
    "connect": Command(
        "streams.connect", ("<target>", "[<port>]", "[--message <text>]", _TIMEOUT, _TRUST),
        "send a message to a port (1000) and print the answer", "target, port, sent, response, path, encrypted"),
    "send": Command(
        "streams.send", ("<target>", "<port>", "--data <text>", _TIMEOUT, _TRUST),
        "send data to a port and print the answer", "target, port, sent, response"),
    "recv": Command(
        "streams.recv", ("<port>", _COUNT, _TIMEOUT), "accept connections and print what they send",
        "messages: seq, port, data, bytes; timeout"),
    "dgram": Command(
        "streams.dgram", ("<target>", "<port>", "--data <text>", _TRUST), "send a datagram", "target, port, bytes, confirmed"),
    "listen": Command(
        "streams.listen", ("<port>", _COUNT, _TIMEOUT), "print datagrams for a port",
        "messages: src_addr, src_port, data, bytes; timeout"),
    "send-file": Command(
        "exchange.send_file", ("<target>", "<path>", _TIMEOUT, "[--prefer-direct]", _TRUST),
        "send a file; returns when it is stored and verified",
        "filename, bytes, bytes_sent, bytes_resumed, destination, elapsed_ms, sha256, throughput_mbps, transport, verified"),
    "send-message": Command(
        "exchange.send_message",
        ("<target>", "--data <text>", "[--data-file <path>]", "[--type <text, json or binary>]", _COUNT,
         "[--reuse-conn]", "[--wait [<duration>]]", "[--reply-to <id>]", "[--trace]", "[--no-resend]", _TIMEOUT, _TRUST),
        "put a message into a node's inbox", "target, to, type, bytes, ack, message_id, tagged, seq, reply; results"),
    "publish": Command(
        "exchange.publish", ("<target>", "<topic>", "--data <text>", _TRUST), "publish an event", "target, topic, bytes"),
    "subscribe": Command(
        "exchange.subscribe", ("<target>", "<topic>", _COUNT, _TIMEOUT, _TRUST), "print events of a topic (* = all)",
        "events: topic, data, bytes; timeout"),
    "received": Command(
        "mailbox.received", ("[--clear]", "[--limit <n>]", "[--since <time>]", "[--before <time>]"),
        "files that came", "files: name, bytes, modified, path; total, dir"),
    "inbox": Command(
        "mailbox.inbox",
        ("[<read>]", "[<id>]", "[--latest]", "[--limit <n>]", "[--from <address>]", "[--since <time>]", "[--full]", "[--clear]",
         "[--before <time>]"),
        "messages that came", "messages; total, dir"),
    # signed requests
    "sign-request": Command(
        "signing.sign", ("--audience <name>", "[--body <text>]", "[--body-file <path>]", "[--body-hash <hex>]"),
        "sign a request in the name of this node, for services outside the network", "envelope, signature, address"),
    "verify-request": Command(
        "signing.verify", ("--envelope <text>", "--signature <base64>", "[--standing]", "[--max-skew <seconds>]"),
        "check who signed a request; exit status 1 if it is not valid", "valid, reason, node_id, address, trusted"),
    # diagnostics
    "prefer-direct": Command(
        "paths.prefer_direct", ("<target>",), "look for a direct path to a node that is reached by the relay",
        "node_id, had_tunnel, was_relay_active, was_relay_pinned, pila_pushed, resolve_error"),
    "peers": Command(
        "diagnostics.peers", ("[--search <text>]", "[--limit <n>]", "[--all]"), "nodes with a tunnel", "peers; total, encrypted"),
    "connections": Command("diagnostics.connections", (), "open streams", "connections; total"),
    "disconnect": Command("diagnostics.disconnect", ("<conn_id>",), "close a stream", "conn_id"),
    "health": Command("diagnostics.health", (), "counters of the daemon", "the daemon's counters"),
    "path": Command("paths.path", ("<target>", "[--wait <duration>]"), "the path to a node, and why", "the path"),
    "ping": Command(
        "measure.ping", ("<target>", _COUNT, _TIMEOUT, "[--reuse-conn]", "[--trace]", _TRUST), "round-trip times to a node",
        "target, to, results: seq, bytes, rtt_ms, dial_ms, path, encrypted[, reused]; timeout"),
    "traceroute": Command(
        "measure.traceroute", ("<target>", _TIMEOUT), "set-up time and three round trips",
        "target, setup_ms, rtt_samples: rtt_ms, bytes; path, encrypted"),
    "bench": Command(
        "bench.bench",
        ("<target>", "[<size_mb>]", "[--one-way]", "[--duration <duration>]", "[--streams <n>]", "[--latency]", _TIMEOUT, _TRUST),
        "throughput through the echo service, or one way",
        "target, mode, streams, sent_bytes, recv_bytes, send_duration_ms, total_duration_ms, send_mbps, total_mbps, complete"),
    # networks
    "network list": Command("networks.list_networks", (), "networks of the registry", "networks: id, name, join_rule, members"),
    "network join": Command("networks.join", ("<network>", "[--token <token>]"), "join a network", "the registry's reply"),
    "network leave": Command("networks.leave", ("<network>",), "leave a network", "the registry's reply"),
    "network members": Command("networks.members", ("<network>",), "nodes of a network", "nodes"),
    "network invite": Command("networks.invite", ("<network>", "<target>"), "invite a node", "the registry's reply"),
    "network invites": Command("networks.invites", (), "invitations for this node", "invites"),
    "network accept": Command("networks.accept", ("<network>",), "accept an invitation", "the registry's reply"),
    "network reject": Command("networks.reject", ("<network>",), "decline an invitation", "the registry's reply"),
    "network create": Command(
        "networks.create", ("--name <name>", "[--join-rule <open or token>]", "[--token <token>]", _ADMIN),
        "make a network; this node owns it", "network_id, name"),
    "network rename": Command("networks.rename", ("<network>", "<name>", _ADMIN), "rename a network", "network_id, name"),
    "network delete": Command("networks.delete", ("<network>", _ADMIN), "delete a network", "network_id"),
    "broadcast": Command(
        "networks.broadcast", ("<network>", "<message>", "[--port <port>]", _ADMIN),
        "a datagram to every member of a network (port 1000)", "network_id, port, bytes"),
}  # fmt: skip

GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Set-up", ("init", "config", "daemon start", "daemon stop", "daemon status", "context", "quickstart", "version")),
    ("This node", ("info", "health", "set-hostname", "clear-hostname", "set-public", "set-private", "set-tags",
                   "clear-tags", "set-webhook", "clear-webhook", "enable-tasks", "disable-tasks", "register", "deregister",
                   "rotate-key", "sign-request", "verify-request")),
    ("Trust", ("find", "lookup", "handshake", "pending", "approve", "reject", "trust", "untrust")),
    ("Communication", ("connect", "send", "recv", "send-message", "inbox", "send-file", "received", "publish",
                       "subscribe", "dgram", "listen")),
    ("Diagnostics", ("ping", "traceroute", "bench", "path", "prefer-direct", "peers", "connections", "disconnect")),
    ("Networks", ("network list", "network join", "network leave", "network members", "network invite", "network invites",
                  "network accept", "network reject", "network create", "network rename", "network delete", "broadcast")),
)  # fmt: skip


def overview() -> str:
    """All commands by group."""
    lines = ["Usage: pilotctl [--json] <command> [arguments]", ""]
    for title, names in GROUPS:
        lines.append(f"{title}:")
        lines += [f"  {name:<16} {COMMANDS[name].description}" for name in names]
        lines.append("")
    lines.append("<target> is an address (1:0001.0000.0009), a node number or a name.")
    lines.append("`pilotctl <command> --help` shows the arguments of a command.")
    return "\n".join(lines)


def help_text(name: str) -> str:
    """Usage of one command, or of a group such as `daemon`."""
    command = COMMANDS.get(name)
    if command is None:
        names = [n for n in COMMANDS if n.startswith(f"{name} ")]
        return "\n".join(["Usage:"] + [f"  pilotctl {n:<16} {COMMANDS[n].description}" for n in names])
    lines = [f"Usage: pilotctl {name}"]
    for text in command.args:
        if len(lines[-1]) + len(text) > 96:
            lines.append("      ")
        lines[-1] += f" {text}"
    return "\n".join([*lines, "", command.description])
