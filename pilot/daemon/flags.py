"""Flags of `pilot-daemon` (cli.md section 8). What the values mean together is decided in config.py."""

from __future__ import annotations

import re

from pilot.daemon.dial import check_proxy
from pilot.flags import (
    Flag,
    FlagTable,
    one_of,
    parse_bool,
    parse_count,
    parse_duration,
    parse_size,
    parse_spin,
)


def parse_ids(text: str) -> tuple[int, ...]:
    """Network numbers 1..65535, separated by commas; empty = none."""
    out = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        if not re.fullmatch(r"[0-9]{1,5}", part) or not 1 <= int(part) <= 65535:
            raise ValueError("want network numbers separated by commas, each 1 to 65535")
        out.append(int(part))
    return tuple(out)


FLAGS: tuple[Flag, ...] = (
    Flag("config", str, "", "JSON file with flag names as keys; flags and environment win over it"),
    Flag("registry", str, "", "registry address, host:port", env="PILOT_REGISTRY"),
    Flag("beacon", str, "", "beacon address, host:port (default: the registry's host, port 9001)",
         env="PILOT_BEACON"),
    Flag("listen", str, ":0", "UDP address of the tunnel, ip:port; port 0 takes a free one"),
    Flag("socket", str, "/tmp/pilot.sock", "Unix socket for local clients; empty: none; pilot.sock in $XDG_RUNTIME_DIR if that "
         "is set", env="PILOT_SOCKET"),
    Flag("endpoint", str, "", "fixed public endpoint ip:port of this host; discovery is skipped"),
    Flag("advertise-endpoint", str, "", "endpoint ip:port to register instead of the discovered one"),
    Flag("identity", str, "", "identity file; empty: a fresh identity that is not kept"),
    Flag("email", str, "", "contact of the operator, sent to the registry", alias="owner"),
    Flag("hostname", str, "", "name to register"),
    Flag("public", parse_bool, "false", "visible and reachable for every registered node"),
    Flag("networks", parse_ids, "", "networks to join after registration, numbers separated by commas"),
    Flag("relay-only", parse_bool, "false", "hide this host's address: all traffic through the beacon"),
    Flag("transport", one_of("auto", "udp", "compat"), "auto",
         "udp, compat (a WebSocket to the beacon, TCP 443), or auto: compat while no UDP gets out", env="PILOT_TRANSPORT"),
    Flag("compat-beacon", str, "", "WebSocket URL of the beacon (default: wss://, the beacon's host, /v1/compat)"),
    Flag("tls-trust", one_of("", "system", "pinned"), "",
         "how the certificate of -compat-beacon is judged: system, or pinned (the default with -compat-fingerprint)"),
    Flag("compat-fingerprint", str, "", "SHA-256 of the certificate of -compat-beacon, hex"),
    Flag("proxy", check_proxy, "auto", "HTTP proxy for -compat-beacon: http://[user:password@]host:port, off, or auto "
         "(HTTPS_PROXY, ALL_PROXY, NO_PROXY)", env="PILOT_PROXY"),
    Flag("encrypt", parse_bool, "true", "must stay true: plaintext tunnels are not supported"),
    Flag("accept-era1", parse_bool, "false", "also speak the tunnel encryption of the first releases with peers that use it"),
    Flag("keepalive", parse_duration, "30s", "interval of heartbeats to the registry"),
    Flag("idle-timeout", parse_duration, "120s", "silence after which a stream is closed"),
    Flag("time-wait", parse_duration, "10s", "how long a closed stream is remembered"),
    Flag("syn-rate-limit", parse_count, "100", "inbound streams accepted per second"),
    Flag("max-conns-per-port", parse_count, "1024", "open streams per local port"),
    Flag("max-conns-total", parse_count, "65536", "open streams in total"),
    Flag("congestion", one_of("bbr", "cubic"), "bbr", "congestion control: bbr or cubic"),
    Flag("max-segment", parse_count, "8192", "largest stream segment, 1152 to 65000 bytes"),
    Flag("spin", parse_spin, "auto", "how long a conversation of small messages is waited for without sleep, at most 1ms; auto: "
         "200us where two processors are ours, else 0 = never"),
    Flag("no-echo", parse_bool, "false", "do not run the echo service (port 7) and the counter (port 9)"),
    Flag("no-dataexchange", parse_bool, "false", "do not receive files and messages (port 1001)"),
    Flag("no-eventstream", parse_bool, "false", "do not run the event broker (port 1002)"),
    Flag("dataexchange-b64", parse_bool, "false", "store every message as base64 in the inbox"),
    Flag("dataexchange-max-frame", parse_size, "64M", "largest message or unchunked file, 64K to 2G",
         env="PILOT_DATAEXCHANGE_MAX_FRAME"),
    Flag("received-quota", parse_size, "2G", "disk space for received files; 0 = as much as is free"),
    Flag("trust-auto-approve", parse_bool, "false", "approve every handshake request"),
    Flag("trust-same-network", parse_bool, "false", "approve requests of nodes that share a joined network"),
    Flag("webhook", str, "", "URL that gets events by POST"),
    Flag("webhook-secret", str, "", "key of the events' HMAC signature", env="PILOT_WEBHOOK_SECRET"),
    Flag("admin-token", str, "", "token for broadcasts and networks", env="PILOT_ADMIN_TOKEN"),
    Flag("registry-tls", parse_bool, "false", "speak TLS to the registry"),
    Flag("registry-trust", one_of("pinned", "system"), "pinned",
         "how the registry's certificate is judged: pinned or system", env="PILOT_REGISTRY_TRUST"),
    Flag("registry-fingerprint", str, "", "SHA-256 of the registry's certificate, hex", env="PILOT_REGISTRY_FINGERPRINT"),
    Flag("metrics-addr", str, "", "serve Prometheus metrics on ip:port, for instance 127.0.0.1:9102"),
    Flag("dry-run", parse_bool, "false", "say what a start would use, change nothing, exit: 0 = it would start"),
    Flag("json", parse_bool, "false", "with -dry-run: the answer as JSON"),
    Flag("log-level", one_of("debug", "info", "warn", "error"), "info", "debug, info, warn or error",
         env="PILOT_LOG_LEVEL"),
    Flag("log-format", one_of("text", "json"), "text", "text or json", env="PILOT_LOG_FORMAT"),
)  # fmt: skip

# Flags of the published daemon beyond ours. Those of the first group concern what ours does not have; of the second, what the
# operator relies on and would lose, so that any value but the one named here is refused.
NO_EFFECT: tuple[Flag, ...] = tuple(
    Flag(name, str, "", "") for name in (
        "log-max-backups", "log-max-size", "motd-feed-url", "motd-interval", "pprof", "rekey-whitelist", "reply-whitelist",
        "sandbox-dir", "syn-whitelist", "telemetry-url",
    )
) + tuple(
    Flag(name, parse_bool, "false", "") for name in (
        "beacon-rtt-probe", "no-addr-watch", "no-path-watch", "no-rx-watchdog", "no-skillinject",
    )
)  # fmt: skip
REFUSED: tuple[Flag, ...] = (
    Flag("sandbox", parse_bool, "false", "files are not confined to a sandbox"),
    Flag("security-profile", str, "compatible", "there are no security profiles"),
    Flag("strict-dataplane-trust", parse_bool, "false", "key exchange with strangers cannot be switched off",
         env="PILOT_STRICT_DATAPLANE_TRUST"),
    Flag("proxy-cmd", str, "", "proxy credentials cannot come from a command", env="PILOT_PROXY_CMD"),
)  # fmt: skip

TABLE = FlagTable("pilot-daemon", "pilot-daemon -registry HOST:PORT [flags]", FLAGS, NO_EFFECT + REFUSED)
BY_NAME = TABLE.by_name
usage_error = TABLE.usage_error
parse_command_line = TABLE.parse_command_line
help_text = TABLE.help_text

__all__ = [
    "BY_NAME", "FLAGS", "NO_EFFECT", "REFUSED", "TABLE", "Flag", "help_text", "parse_command_line", "parse_duration",
    "parse_ids", "parse_size", "usage_error",
]  # fmt: skip
